"""`backdrift sweep`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from backdrift.cli.parse import parse, say
from backdrift.cli.steering import Steering
from backdrift.errors import UserError


@dataclass(frozen=True)
class Sweep:
    """What guidance does to a run's samples: the same noises under several weights, and fidelity against diversity.

    Writes a page (.html), the grid (.png), the curve of precision against recall (.svg) and the figures (.json).
    """

    run: Positional[Path]
    """The run folder."""
    weights: tuple[float, ...] = (0, 1, 1.5, 2, 3, 5)
    """Guidance weights: 0 ignores the label, 1 follows it, more exaggerates it."""
    label: tuple[str, ...] | None = None
    """Classes in the columns of the grid, by number or name; by default the first ten."""
    n: int = 500
    """Samples of each weight for the figures."""
    steps: int = 10
    """Calls of the network per sample."""
    features: str = "pca"
    """What the figures compare: pca (24 principal components of the pixels), pixels, classifier, or a file."""
    seed: int = 0
    out: Path | None = None
    """The .html to write; by default sweep.html in the run."""
    device: str | None = None
    net: str | None = None
    """The network's own file, for a run trained with --net."""
    steer: OmitArgPrefixes[Steering] = field(default_factory=Steering)


def main(arguments: list[str]) -> None:
    options = parse(Sweep, "sweep", arguments)
    check(options)
    from backdrift import data
    from backdrift.cli.choices import features
    from backdrift.evaluate.sweep import sweep
    from backdrift.model import load
    from backdrift.progress import counting_bar
    from backdrift.report.sweep import write_sweep
    from backdrift.run import Run
    from backdrift.train.networks import FileNet

    run = Run(options.run)
    config = run.config()
    model = load(run.folder, options.device, None if options.net is None else FileNet.of(options.net))
    columns = model.labels(list(options.label or model.classes[:10]), len(options.label or model.classes[:10]))
    if columns is None or not len(columns):
        raise UserError("This model was trained without labels, so there is nothing to guide towards.")

    def at(weight: float):
        return options.steer.around(model, weight, ("label",))

    for weight in options.weights:
        at(weight)  # a weight or steering that makes no sense is said before the first sample
    pictures = data.load(config["data"]["source"])
    train, _ = pictures.split()
    with counting_bar("sweeping") as bar:
        found = sweep(
            at,
            pictures,
            options.weights,
            n=options.n,
            steps=options.steps,
            features=features([options.features], train)[0],
            seed=options.seed,
            on_progress=bar,
        )
    paths = write_sweep(
        options.out or run.folder / "sweep.html",
        found,
        grid(at, options, columns),
        len(columns),
        f"backdrift: guidance of {run.folder.name}",
        shlex.join(["backdrift", "sweep", *arguments]),
    )
    for line in found.lines():
        say(line)
    for what, path in zip(("page", "grid", "curve", "figures"), paths, strict=True):
        say(f"{what:<7} {path}")


def grid(at, options: Sweep, columns):
    """A row of pictures for each weight, the same noise and label down a column."""
    import torch

    rows = [
        at(weight).sample(len(columns), label=columns, steps=options.steps, seed=options.seed).cpu()
        for weight in options.weights
    ]
    return torch.cat(rows)


def check(options: Sweep) -> None:
    """Raises `UserError` for choices that cannot be swept."""
    if options.n < 20:
        raise UserError(f"A sweep needs at least 20 samples of each weight (hundreds tell more), not {options.n}.")
    if not options.weights:
        raise UserError("--weights needs a value, such as 1 2 3.")
    if options.out is not None and options.out.suffix.lower() != ".html":
        raise UserError(f"The page is HTML; let {options.out} end in .html.")
    options.steer.check(0.0)
