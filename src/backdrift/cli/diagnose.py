"""`backdrift diagnose`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError


@dataclass(frozen=True)
class Diagnose:
    """Whether a posterior sampler can be believed on a problem: it is compared with the exact posterior.

    The prior is the run's own training pictures, for which the posterior is known exactly; the sampler runs with their
    exact denoiser and with the run's network. Prints a verdict for each question and writes a page and its figures.
    """

    run: Positional[Path]
    """The run folder."""
    operator: str
    """What was measured: radon:20, blur:1, inpaint, down:2, ... (backdrift reconstruct --help), or my_file.py:A."""
    sampler: str | None = None
    """mmps, pigdm, dps, daps, ddrm, ...; by default mmps for linear operators with Gaussian noise, else daps."""
    y: Path | None = None
    """The measurement of a picture in [-1, 1], a .npy of the operator's shape."""
    held_out: int = 0
    """Without --y: this picture of the run's held-out part is measured."""
    noise: float = 1.0
    """Standard deviation of the measurement's noise, in y's units. With little of it the posterior is one picture,
    which is refused with the noise that would leave more."""
    mask: Path | None = None
    """For inpaint: white where the picture is seen."""
    atoms: int = 1000
    """How many of the training pictures are the prior."""
    n: int = 1000
    """Draws on each rung."""
    steps: int = 100
    """Calls of the denoiser for each draw."""
    exact: bool = False
    """Leave out the run's network: the sampler alone is judged."""
    remedy: bool = True
    """After a FAIL of the sampler, try what may put it right, and judge that."""
    alpha: float = 0.05
    """At most this share of perfect samplers fails."""
    seed: int = 0
    out: Path | None = None
    """The page to write, an .html; by default diagnosis/OPERATOR-SAMPLER.html in the run. The figures lie beside it."""
    net: str | None = None
    """The network's own file, for a run trained with --net."""


def main(arguments: list[str]) -> None:
    options = parse(Diagnose, "diagnose", arguments)
    check(options)
    from backdrift import data
    from backdrift.cli.choices import posterior_sampler
    from backdrift.cli.operators import operator
    from backdrift.cli.reconstruct import held_out, simulated
    from backdrift.data import read_mask
    from backdrift.data.values import read_values
    from backdrift.exact import Atoms
    from backdrift.files import write_json
    from backdrift.model import load
    from backdrift.run import Run
    from backdrift.train.networks import FileNet
    from backdrift.trust.diagnose import diagnose
    from backdrift.trust.remedy import advice, remedied

    model = load(options.run, "cpu", None if options.net is None else FileNet.of(options.net))
    shape = tuple(model.event_shape)
    mask = None if options.mask is None else read_mask(options.mask, shape)
    measurement = operator(options.operator, shape, options.noise, mask)
    sampler = posterior_sampler(options.sampler, measurement)
    train, _ = data.load(Run(options.run).config()["data"]["source"]).split()
    count = min(options.atoms, len(train))
    labels = None if train.labels is None else train.labels[:count]
    prior = Atoms(train.tensor(list(range(count))), labels=labels)
    if options.y is None:
        y = simulated(measurement, held_out(options.run, options.held_out), options.seed)
    else:
        y = read_values(options.y).data.reshape(measurement.shape)
    found = diagnose(
        sampler,
        prior,
        measurement,
        y,
        process=model.denoiser.process,
        learned=None if options.exact else model.denoiser,
        n=options.n,
        steps=options.steps,
        seed=options.seed,
        alpha=options.alpha,
    )
    if options.remedy:
        found = remedied(found)
    for line in found.lines():
        say(line)
    say(advice(found))
    name = f"{options.operator}-{type(sampler).__name__}".replace(":", "-").replace("/", "-")
    out = options.out or options.run / "diagnosis" / f"{name}.html"
    found.to_html(out)
    command = shlex.join(["backdrift", "diagnose", *arguments])
    write_json(out.with_suffix(".json"), {"command": command, "advice": advice(found), **found.to_dict()})
    say(f"page  {out}")


def check(options: Diagnose) -> None:
    """Raises `UserError` for what cannot be done, before anything is read."""
    if not options.noise > 0:
        raise UserError(f"The noise is a positive standard deviation, not {options.noise}.")
    if options.atoms < 10 or options.n < 200 or options.steps < 2:
        raise UserError("The lens needs --atoms of at least 10, --n of at least 200 and --steps of at least 2.")
    if not 0 < options.alpha < 1:
        raise UserError(f"--alpha is a share between 0 and 1, not {options.alpha}.")
    if options.out is not None and options.out.suffix.lower() != ".html":
        raise UserError(f"The page is written as HTML; let {options.out} end in .html.")
