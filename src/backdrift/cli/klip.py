"""`backdrift klip`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError


@dataclass(frozen=True)
class KlipOptions:
    """Measurements screened for what a run has not seen: a score, p-values and a map of each, as one page.

    The p-values come from held-out pictures of the run that are measured and scored in the same way.
    """

    run: Positional[Path]
    """The run folder."""
    operator: str
    """What was measured: radon:20, blur:1, inpaint, down:2, ... (backdrift reconstruct --help), or my_file.py:A."""
    y: Path | None = None
    """Measurements of pictures in [-1, 1]: a .npy of the operator's shape, or of many along a first axis."""
    data: Path | None = None
    """Instead of --y: pictures to measure and screen, a folder, .zip, .npy or .npz."""
    noise: float = 0.05
    """Standard deviation of the measurement's noise, in y's units."""
    mask: Path | None = None
    """For inpaint: white where the picture is seen."""
    sampler: str = "pigdm"
    """A posterior sampler that guides: pigdm, mmps, tmpd, dps, ..."""
    usual: int = 100
    """Held-out pictures that say how scores are where nothing is wrong; p-values go down to 2 in so many."""
    n: int = 8
    """Posterior draws of each measurement."""
    steps: int = 20
    """Calls of the network for each draw."""
    levels: int = 32
    """Noise levels at which the two beliefs are compared."""
    first: int | None = None
    """Screen so many of --data or --y, the first ones; left out, all."""
    seed: int = 0
    batch: int = 64
    """Draws at once, for memory only."""
    out: Path | None = None
    """The page to write, an .html; by default klip/OPERATOR.html in the run. The figures lie beside it as .json."""
    device: str | None = None
    net: str | None = None
    """The network's own file, for a run trained with --net."""


def main(arguments: list[str]) -> None:
    options = parse(KlipOptions, "klip", arguments)
    check(options)
    import torch

    from backdrift import data
    from backdrift.cli.choices import posterior_sampler
    from backdrift.cli.operators import operator
    from backdrift.data import read_mask
    from backdrift.model import load
    from backdrift.noise import Noise
    from backdrift.progress import counting_bar
    from backdrift.report.screening import rows, write_screening
    from backdrift.run import Run
    from backdrift.train.networks import FileNet
    from backdrift.trust import Reference, Renoised, screen

    model = load(options.run, options.device, None if options.net is None else FileNet.of(options.net))
    shape = tuple(model.event_shape)
    mask = None if options.mask is None else read_mask(options.mask, shape)
    measurement = operator(options.operator, shape, options.noise, mask)
    sampler = posterior_sampler(options.sampler, measurement)
    train, held = data.load(Run(options.run).config()["data"]["source"]).split()
    if len(held) < options.usual:
        raise UserError(f"The run holds out {len(held)} pictures; --usual cannot be {options.usual}.")
    y, names = wanted(options, measurement, shape)
    # spread over the held-out part, and the training part: neighbours may be much alike
    known = torch.linspace(0, len(train) - 1, min(len(train), 4096)).long()
    usual = held.tensor(torch.linspace(0, len(held) - 1, options.usual).long())
    with counting_bar("screening") as bar:
        found = screen(
            sampler,
            model.denoiser,
            measurement,
            y,
            measurement.draw(usual, Noise.of(options.seed, len(usual)).at("usual")),
            Reference(train.tensor(known)),
            options.n,
            steps=options.steps,
            estimator=Renoised(options.levels),
            seed=options.seed,
            batch=options.batch,
            on_progress=bar,
        )
    path = options.out or options.run / "klip" / f"{options.operator.replace(':', '-').replace('/', '-')}.html"
    command = shlex.join(["backdrift", "klip", *arguments])
    write_screening(path, found, measurement, names, command)
    for row in sorted(rows(found, names), key=lambda row: row["p"]["klip"])[:20]:
        say(f"{row['name']:24} {row['klip']:10.1f} nats  s.e. {row['stderr']:.1f}  p {row['p']['klip']:.3f}")
    say(f"page    {path}")


def check(options: KlipOptions) -> None:
    """Raises `UserError` for choices that exclude each other or make no sense."""
    if (options.y is None) == (options.data is None):
        raise UserError("Give the measurements as --y FILE.npy, or pictures to measure as --data PATH.")
    if not options.noise > 0:
        raise UserError(f"The noise is a positive standard deviation (a nearly exact y: 1e-4), not {options.noise}.")
    for name, least in (("usual", 19), ("n", 2), ("steps", 1), ("levels", 1), ("batch", 1), ("first", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is at least {least}, not {value}.")
    if options.out is not None and options.out.suffix.lower() != ".html":
        raise UserError(f"The page is written as .html; let {options.out} end so.")


def wanted(options: KlipOptions, measurement, shape: tuple[int, ...]):
    """(measurements (N, *shape), their names). Raises `UserError` where they do not fit."""
    import torch

    from backdrift import data
    from backdrift.data.values import read_values
    from backdrift.noise import Noise

    if options.y is not None:
        y = measurement.batched(read_values(options.y).data.float())[: options.first]
        return y, [f"{options.y.name} {k}" for k in range(len(y))]
    pictures = data.pictures(options.data, shape[1:], channels=shape[0])
    chosen = pictures.subset(torch.arange(len(pictures))[: options.first])
    y = measurement.draw(chosen.tensor(), Noise.of(options.seed, len(chosen)).at("y"))
    return y, list(chosen.names)
