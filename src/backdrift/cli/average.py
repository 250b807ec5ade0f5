"""`backdrift average`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError


@dataclass(frozen=True)
class Average:
    """Choose the length of a run's average after training: see what lengths do, then write a run with one of them."""

    run: Positional[Path]
    """The run folder."""
    width: float | None = None
    """Make the run with the average of this width, the standard deviation of its profile relative to the training."""
    out: Path | None = None
    """The folder for it; by default the run's with the width at its end."""
    widths: tuple[float, ...] = (0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.125, 0.15)
    """Without --width: those to compare."""
    n: int = 0
    """Without --width: samples of each for a Fréchet distance (24 components of the pixels), beside the loss."""
    steps: int = 10
    """Calls of the network per sample."""
    seed: int = 0
    device: str | None = None
    net: str | None = None
    """The network's own file, for a run trained with --net."""


def main(arguments: list[str]) -> None:
    options = parse(Average, "average", arguments)
    if options.n < 0 or options.n == 1:
        raise UserError(f"A distance needs at least two samples (hundreds tell more), not {options.n}.")
    from backdrift.run import Run
    from backdrift.train.networks import FileNet
    from backdrift.train.posthoc import write_average

    run, net = Run(options.run), None if options.net is None else FileNet.of(options.net)
    if options.width is None:
        table(options, run, net)
        return
    beside = run.folder if run.folder.name else run.folder.absolute()
    out = options.out or beside.with_name(f"{beside.name}-width-{options.width:g}")
    recipe = write_average(run, options.width, out, ["backdrift", "average", *arguments], net)
    say(f"left over  {recipe.left_over:.1e} of the profile")
    say(f"model      {Run(out).model_path}")


def table(options: Average, run, net) -> None:
    """The figures of several widths, a line each."""
    from backdrift import data
    from backdrift.device import pick
    from backdrift.evaluate.widths import by_width
    from backdrift.progress import counting_bar

    pictures = data.load(run.config()["data"]["source"])
    how = {"n": options.n, "steps": options.steps, "seed": options.seed, "device": pick(options.device), "net": net}
    with counting_bar("averaging") as bar:
        rows = by_width(run, pictures, options.widths, **how, on_progress=bar)
    best = min(rows, key=lambda row: row.loss if row.distance is None else row.distance)
    say("width   held-out loss   left over" + (f"   FD of {options.n} samples" if options.n else ""))
    for row in rows:
        distance = "" if row.distance is None else f"   {row.distance:.4g}"
        say(f"{row.width:<7g} {row.loss:<15.5f} {row.left_over:<9.1e}{distance}{'   lowest' if row is best else ''}")
    say(f"next    backdrift average {options.run} --width {best.width:g}")
