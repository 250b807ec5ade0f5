"""`backdrift export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli import nearest
from backdrift.cli.parse import parse, say
from backdrift.errors import UserError


@dataclass(frozen=True)
class Export:
    """Write a run's network and a sampling plan as two files that run without backdrift (docs/export.md)."""

    run: Positional[Path]
    """The run folder, or a folder that diffusers wrote."""
    steps: int = 10
    """Calls of the network; the plan tuned for them is used if the run has one."""
    format: str = "onnx"
    """onnx, or pt2, which needs torch alone."""
    guidance: float = 1.0
    """1 follows the label, more exaggerates it; it becomes part of the network's file."""
    solver: str | None = None
    """As for backdrift sample."""
    grid: str | None = None
    """As for backdrift sample."""
    plan: Path | None = None
    """A saved plan, in place of solver, grid and steps."""
    out: Path | None = None
    """The folder for network.onnx or .pt2 and plan.json; RUN/export by default."""
    net: str | None = None
    """The network's own file, for a run trained with --net."""


def main(arguments: list[str]) -> None:
    options = parse(Export, "export", arguments)
    if options.plan is not None and (options.solver or options.grid):
        raise UserError("Give either a plan or a solver and grid: a plan already contains both.")
    from backdrift.cli.choices import grid, solver
    from backdrift.interop.program import ONNX, PT2, compiled, export
    from backdrift.model import load
    from backdrift.sample.plan import Plan
    from backdrift.train.networks import FileNet

    formats = {"onnx": ONNX(), "pt2": PT2()}
    if options.format not in formats:
        raise UserError(f"There is no format {options.format!r}{nearest(options.format, formats)}; choose onnx or pt2.")
    chosen, places = solver(options.solver), grid(options.grid)
    model = load(options.run, "cpu", None if options.net is None else FileNet.of(options.net))
    if options.plan is not None:
        plan = Plan.load(options.plan)
    else:
        tuned = None if chosen or places else model.tuned_plan(options.steps, options.guidance)
        plan = tuned or compiled(model.denoiser, options.steps, chosen, places)
    made = export(
        model.denoiser, plan, options.out or options.run / "export", formats[options.format], guidance=options.guidance
    )
    say(f"network  {made.network}  (its answers differ from ours by {made.gap:.0e} of their size)")
    say(f"plan     {made.plan}  ({plan.evaluations} evaluations, {plan.solver})")
