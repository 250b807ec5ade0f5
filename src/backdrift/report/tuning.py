"""The page of a tuned plan: its error beside that of hand-made plans, and what they make of the same noise."""

from __future__ import annotations

from pathlib import Path

import torch

from backdrift.denoiser import Denoiser
from backdrift.files import write_text
from backdrift.report import page
from backdrift.report.chart import Axis, Curve, chart
from backdrift.sample.default import default_grid, default_solver
from backdrift.sample.ode import DPMpp
from backdrift.sample.plan import Plan
from backdrift.sample.solver import Solver
from backdrift.sample.tune import Task, Tuned

BUDGETS = (5, 6, 8, 10, 15, 20)
CURVE, SHOWN = 48, 12  # noises behind the curves, pictures in a row


def write_tuning_report(path: Path, denoiser: Denoiser, found: Tuned) -> Path:
    """Write the page; returns its path."""
    few = found.fresh.part(torch.arange(min(CURVE, len(found.fresh.x1))))
    nfe = found.plan.evaluations
    header = ("plan", "median", "root mean square")
    rows = [(name, f"{error.median:.3g}", f"{error.rms:.3g}") for name, error in found.errors.items()]
    parts = [
        page.text(found.lines()[-1] + ".", "lead"),
        page.table(header, rows),
        page.text(
            f"Distance from a fine run from the same noise, in units of a coordinate, at {nfe} evaluations on "
            f"{len(found.fresh.x1)} noises that the tuning never saw.",
            "note",
        ),
        page.heading("Error against evaluations"),
        _curves(denoiser, found, few),
        *_pictures(denoiser, found, few),
    ]
    write_text(path, page.Page(f"backdrift: a plan for {nfe} evaluations", parts).html())
    return path


def _hand_made(denoiser: Denoiser, solver: Solver, steps: int) -> Plan:
    schedule = denoiser.process.schedule
    return solver.plan(schedule, default_grid(denoiser).times(schedule, steps))


def _curves(denoiser: Denoiser, found: Tuned, few: Task) -> str:
    nfe = found.plan.evaluations
    curves = []
    for name, solver in (("default", default_solver(denoiser)), ("DPM-Solver++(2M)", DPMpp(2))):
        errors = [few.error(denoiser, _hand_made(denoiser, solver, steps)) for steps in BUDGETS]
        curves.append(Curve(f"{name}, median", BUDGETS, [e.median for e in errors]))
        curves.append(Curve(f"{name}, rms", BUDGETS, [e.rms for e in errors], dashed=True))
    tuned = few.error(denoiser, found.plan)
    curves += [Curve("this plan, median", [nfe], [tuned.median]), Curve("this plan, rms", [nfe], [tuned.rms])]
    return chart(f"Error on {len(few.x1)} fresh noises", curves, Axis("evaluations"), Axis("error", log=True))


def _pictures(denoiser: Denoiser, found: Tuned, few: Task) -> list[str]:
    if len(denoiser.event_shape) != 3 or denoiser.event_shape[0] not in (1, 3):
        return []
    from backdrift.data import grid_png

    part = few.part(torch.arange(min(SHOWN, len(few.x1))))
    nfe = found.plan.evaluations
    rows = [
        part.run(denoiser, _hand_made(denoiser, DPMpp(2), nfe)),
        part.run(denoiser, _hand_made(denoiser, default_solver(denoiser), nfe)),
        part.run(denoiser, found.plan),
        part.end,
    ]
    caption = f"from above: DPM-Solver++(2M), the default and this plan at {nfe} evaluations, and the fine run"
    strip = page.picture(grid_png(torch.cat(rows).cpu(), columns=len(part.x1)), caption)
    return [page.heading("The same noises"), strip]
