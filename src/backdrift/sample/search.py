"""The best n steps out of many: a time grid by dynamic programming over a teacher's trajectories.

A fine run of the model from a few noises is recorded. The cost of a step from knot i to knot j is how far one step with
the denoiser's answer held constant leads away from the recorded trajectory; the cheapest chain of n steps follows by
dynamic programming. Chen et al. 2024, arXiv:2405.11326, Eq. 12, with the spread of the state as the unit of distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.sample.default import data_scale, default_grid, default_solver
from backdrift.sample.grids import Grid
from backdrift.schedule import Schedule

KNOTS = 48
DISCOUNT = 1.15  # errors made early shrink on the way, or are corrected: the paper's factor for what follows


@kind("grid.Knots")
@dataclass(frozen=True)
class Knots(Grid):
    """These times and no others."""

    knots: tuple[float, ...]

    def place(self, schedule, n, start, end):
        if n != len(self.knots) - 1:
            raise UserError(f"This grid was made for {len(self.knots) - 1} steps, not {n}.")
        return torch.tensor(self.knots, dtype=torch.float64)


@torch.no_grad()
def searched_grid(denoiser: Denoiser, x1: Tensor, n: int, cond: Mapping | None = None, fine: int = KNOTS) -> Knots:
    """The grid of n steps that follows the trajectories from x1 (B, *event) best; costs `fine` evaluations each.

    Raises `UserError` for more steps than knots.
    """
    if not 1 <= n <= fine:
        raise UserError(f"A searched grid takes 1 to {fine} steps, not {n}.")
    schedule = denoiser.process.schedule
    times = default_grid(denoiser).times(schedule, fine)
    seen: list[tuple[Tensor, Tensor]] = []
    plan = default_solver(denoiser).plan(schedule, times)
    out = plan.run(denoiser, x1, cond, on_step=lambda step: seen.append((step.state, step.mean)))
    states, means = torch.stack([*(x for x, _ in seen), out]), torch.stack([D for _, D in seen])
    return Knots(tuple(times[cheapest(costs(states, means, schedule, times, data_scale(denoiser)), n)].tolist()))


def costs(states: Tensor, means: Tensor, schedule: Schedule, times: Tensor, scale: float) -> Tensor:
    """(K + 1, K + 1): the median distance from the trajectory after one step i -> j; infinite where j <= i."""
    alpha, sigma = schedule.alpha_sigma(times)
    out = torch.full((len(times), len(times)), torch.inf, dtype=torch.float64)
    for i in range(len(times) - 1):
        for j in range(i + 1, len(times)):
            keep = float(sigma[j] / sigma[i])
            step = keep * states[i] + (float(alpha[j]) - keep * float(alpha[i])) * means[i]
            spread = float(torch.hypot(alpha[j] * scale, sigma[j]))
            out[i, j] = (step - states[j]).flatten(1).norm(dim=1).median() / spread
    return out


def cheapest(cost: Tensor, n: int) -> list[int]:
    """The n + 1 knots, from the first to the last, of the chain with the smallest discounted sum of costs."""
    last = len(cost) - 1
    value = cost[:, last].clone()
    choice: list[Tensor] = []
    for _ in range(n - 1):
        value, best = (cost + DISCOUNT * value).min(1)
        choice.append(best)
    knots = [0]
    for best in reversed(choice):
        knots.append(int(best[knots[-1]]))
    return [*knots, last]
