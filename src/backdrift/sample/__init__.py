"""Sampling: one call for every sampler, process and denoiser.

`sample` makes the start state, asks the grid for times, compiles the solver's plan (or takes one), and runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.process.base import State
from backdrift.process.gaussian import Gaussian
from backdrift.sample.default import default_grid, default_solver
from backdrift.sample.grids import Grid
from backdrift.sample.plan import Plan, Step
from backdrift.sample.solver import Sampler


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    x1: State | None = None,
    *,
    shape: Sequence[int] | None = None,
    index: Sequence[int] | None = None,
    solver: Sampler | None = None,
    steps: int = 20,
    grid: Grid | None = None,
    plan: Plan | None = None,
    cond: Mapping | None = None,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> State:
    """Draw samples, (B, *event).

    x1: the state at t = 1 (for a plan: at plan.start); by default drawn from the process's prior. Without it, `shape`
    (B, *event) or `index` gives the batch. index: the numbers of the samples under `seed`; sample i is the same in any
    batch. steps: calls of the denoiser. plan: a compiled plan, in place of solver, steps and grid.

    Raises `UserError` for a batch that cannot be inferred, zero steps, or a solver that cannot serve the process.
    """
    if plan is not None and (solver is not None or grid is not None):
        raise UserError("Give either a plan or a solver and grid: a plan already contains both.")
    if plan is not None and x1 is None and plan.start < 1:
        raise UserError(f"This plan starts at t = {plan.start:g}: give it the states there as x1.")
    if steps < 1:
        raise UserError(f"Sampling needs at least 1 step, not {steps}.")
    index = _index(x1, shape, index)
    noise = Noise(seed, index)
    if x1 is None:
        x1 = denoiser.process.prior(_like(denoiser, shape, len(index)), noise.at("prior"), cond)
    if plan is not None:
        return plan.run(denoiser, x1, cond, noise, on_step)
    solver, grid = solver or default_solver(denoiser), grid or default_grid(denoiser)
    schedule = getattr(denoiser.process, "schedule", None)
    # a few grids start below t = 1, where a schedule may be finite that is not at 1
    start = float(grid.times(schedule, steps)[0])
    solver, intervals = solver.budget(steps, schedule, start)
    times = grid.times(schedule, intervals)
    return solver.run(denoiser, x1, times, cond, noise, on_step)


def _index(x1: State | None, shape: Sequence[int] | None, index: Sequence[int] | None) -> Tensor:
    if x1 is not None:
        count = len(next(iter(x1.values()))) if isinstance(x1, Mapping) else len(x1)
    elif shape:
        count = shape[0]
    elif index is not None:
        count = len(index)
    else:
        raise UserError("Say how many samples: give x1, shape=(B, ...) or index=[...].")
    if index is None:
        return torch.arange(count)
    if len(index) != count:
        raise UserError(f"index names {len(index)} samples, but the batch has {count}.")
    return torch.as_tensor(index, dtype=torch.int64)


def _like(denoiser: Denoiser, shape: Sequence[int] | None, count: int) -> State:
    """An empty state of the denoiser's shape, type and device."""
    if isinstance(denoiser.event_shape, Mapping):
        return {
            name: _empty(denoiser, process, (count, *denoiser.event_shape[name]))
            for name, process in denoiser.process.fields.items()
        }
    event = tuple(denoiser.event_shape)
    if shape is not None and tuple(shape[1:]) != event:
        raise UserError(f"This model makes samples of shape {event}, not {tuple(shape[1:])}.")
    return _empty(denoiser, denoiser.process, (count, *event))


def _empty(denoiser: Denoiser, process: object, shape: tuple[int, ...]) -> Tensor:
    reference = next((v for v in (*denoiser.parameters(), *denoiser.buffers()) if v.is_floating_point()), None)
    device = reference.device if reference is not None else torch.device("cpu")
    if not isinstance(process, Gaussian):
        return torch.zeros(shape, dtype=torch.int64, device=device)
    # the state is kept in at least float32, whatever the network computes in
    wide = reference is not None and reference.dtype == torch.float64
    return torch.zeros(shape, dtype=torch.float64 if wide else torch.float32, device=device)
