"""Time grids: where a sampler evaluates. A grid is a frozen rule that gives n + 1 falling times for n intervals.

Most grids are uniform in a clock, a monotone function of the noise-to-signal ratio r = sigma / alpha, and differ only
in the clock. `Leading` and `Linspace` are kept to reproduce others' results; both are biased (see their docstrings).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.schedule import Schedule


class Grid(ABC):
    """`times(schedule, n)` gives n + 1 falling float64 times from `start` to `end`."""

    @abstractmethod
    def place(self, schedule: Schedule, n: int, start: float, end: float) -> Tensor:
        """The n + 1 times; the ends may differ from `start` and `end` by rounding only."""

    def times(self, schedule: Schedule, n: int, start: float = 1.0, end: float = 0.0) -> Tensor:
        """n + 1 falling times. Raises `UserError` for n < 1 or an interval that is not within [0, 1]."""
        if n < 1:
            raise UserError(f"Sampling needs at least 1 step, not {n}.")
        if not 0 <= end < start <= 1:
            raise UserError(f"A grid runs from a start down to an end within [0, 1], not from {start} to {end}.")
        times = self.place(schedule, n, start, end)
        times[0], times[-1] = start, end
        if not bool((times.diff() < 0).all()):
            raise UserError(
                f"{self} does not fall from {start} to {end} in {n} steps on {schedule}: take another grid."
            )
        return times


def _uniform(high: float | Tensor, low: float | Tensor, n: int) -> Tensor:
    part = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return high + (low - high) * part


@kind("grid.Uniform")
@dataclass(frozen=True)
class Uniform(Grid):
    """Uniform in t."""

    def place(self, schedule, n, start, end):
        return _uniform(start, end, n)


@kind("grid.Quadratic")
@dataclass(frozen=True)
class Quadratic(Grid):
    """Uniform in sqrt(t): finer near the data. Song et al. 2021, arXiv:2010.02502, appendix D.2."""

    def place(self, schedule, n, start, end):
        return _uniform(math.sqrt(start), math.sqrt(end), n) ** 2


@kind("grid.ShiftedUniform")
@dataclass(frozen=True)
class ShiftedUniform(Grid):
    """Uniform in the time u that `schedule.Shifted` maps to t: more steps at high noise, for larger pictures.

    t = shift u / (1 + (shift - 1) u); on `Flow` it multiplies sigma / alpha by `shift`. Esser et al. 2024,
    arXiv:2403.03206, Eq. 23, where shift = sqrt(pixels / pixels of the training size).
    """

    shift: float = 3.0

    def __post_init__(self):
        if not self.shift > 0:
            raise UserError(f"ShiftedUniform needs shift > 0, not {self.shift}.")

    def place(self, schedule, n, start, end):
        high, low = (t / (self.shift - (self.shift - 1) * t) for t in (start, end))
        u = _uniform(high, low, n)
        return self.shift * u / (1 + (self.shift - 1) * u)


@kind("grid.Angle")
@dataclass(frozen=True)
class Angle(Grid):
    """Uniform in the noise angle w = atan2(sigma, alpha), which is finite at both ends."""

    def place(self, schedule, n, start, end):
        return schedule.time_at_angle(_uniform(schedule.angle(start), schedule.angle(end), n))


@kind("grid.DataScaled")
@dataclass(frozen=True)
class DataScaled(Grid):
    """Uniform in sigma / (sigma + scale alpha), finite at both ends; scale: the data's standard deviation.

    Half of the steps lie where the noise is weaker than the data, whatever the schedule. last: the length of the last
    interval in units of the others, for a solver whose last step is its weakest.
    """

    scale: float = 0.5
    last: float = 1.0

    def __post_init__(self):
        if not (self.scale > 0 and self.last > 0):
            raise UserError(f"DataScaled needs a scale and a last interval > 0, not {self.scale} and {self.last}.")

    def place(self, schedule, n, start, end):
        def clock(t: float) -> Tensor:
            alpha, sigma = schedule.alpha_sigma(t)
            return sigma / (sigma + self.scale * alpha)

        part = (torch.arange(n + 1, dtype=torch.float64) / (n - 1 + self.last)).clamp_max(1)
        u = clock(start) + (clock(end) - clock(start)) * part
        return schedule.time(2 * ((1 - u) / (self.scale * u)).log())


@kind("grid.LogSNR")
@dataclass(frozen=True)
class LogSNR(Grid):
    """Uniform in log(alpha^2 / sigma^2). Lu et al. 2022, arXiv:2206.00927, section 3.

    Where an end has infinite log-SNR, the uniform part stops at `low` or `high` and one step joins it to the end.
    """

    low: float = -10.0
    high: float = 10.0

    def __post_init__(self):
        if not self.low < self.high:
            raise UserError(f"LogSNR needs low < high, not {self.low} and {self.high}.")

    def place(self, schedule, n, start, end):
        first, last = float(schedule.logsnr(start)), float(schedule.logsnr(end))
        before, after = first < self.low and math.isinf(first), last > self.high and math.isinf(last)
        first, last = (self.low if before else first), (self.high if after else last)
        inner = n - before - after
        if inner < 1:
            return _uniform(start, end, n)
        times = schedule.time(_uniform(first, last, inner))
        ends = [torch.tensor([start], dtype=torch.float64)] * before, [torch.tensor([end], dtype=torch.float64)] * after
        return torch.cat([*ends[0], times, *ends[1]])


@kind("grid.Karras")
@dataclass(frozen=True)
class Karras(Grid):
    """Uniform in r^(1/rho), r = sigma / alpha. Karras et al. 2022, arXiv:2206.00364, Eq. 5.

    r is limited to [smallest, largest]; an end beyond them is joined by one step.
    """

    rho: float = 7.0
    smallest: float = 0.002
    largest: float = 80.0

    def __post_init__(self):
        if not (self.rho > 0 and 0 < self.smallest < self.largest):
            raise UserError("Karras needs rho > 0 and 0 < smallest < largest.")

    def place(self, schedule, n, start, end):
        ratios = [(-float(schedule.logsnr(t)) / 2) for t in (start, end)]
        high, low = math.log(self.largest), math.log(self.smallest)
        before, after = ratios[0] > high + 1e-9, ratios[1] < low - 1e-9
        first, last = min(ratios[0], high), max(ratios[1], low)
        inner = n - before - after
        if inner < 1:
            return _uniform(start, end, n)
        roots = _uniform(math.exp(first / self.rho), math.exp(last / self.rho), inner)
        times = schedule.time(-2 * self.rho * roots.log())
        ends = [torch.tensor([start], dtype=torch.float64)] * before, [torch.tensor([end], dtype=torch.float64)] * after
        return torch.cat([*ends[0], times, *ends[1]])


@dataclass(frozen=True)
class _Discrete(Grid):
    """Times of a table of `table` steps; entry k, counted from 0, lies at t = (k + 1) / table.

    Entries are diffusers' own, for every `table` and n: the same floating-point expressions, rounded half to even.
    """

    table: int = 1000

    @abstractmethod
    def steps(self, n: int) -> np.ndarray:
        """The n table entries to evaluate, falling."""

    def place(self, schedule, n, start, end):
        return torch.from_numpy(np.append((self.steps(n) + 1) / self.table, 0.0))

    def times(self, schedule, n, start=1.0, end=0.0):
        if (start, end) != (1.0, 0.0):
            raise UserError(f"{type(self).__name__} covers the whole of [0, 1]; use another grid for a part of it.")
        if not 1 <= n <= self.table:
            raise UserError(f"{type(self).__name__} takes 1 to {self.table} steps, not {n}.")
        times = self.place(schedule, n, start, end)
        if times[0] > 1:
            raise UserError(f"The times of a grid lie in [0, 1], but {self} in {n} steps starts at {float(times[0])}.")
        return times


@kind("grid.Trailing")
@dataclass(frozen=True)
class Trailing(_Discrete):
    """Entries K, K - K/n, ...: starts at t = 1. Lin et al. 2024, arXiv:2305.08891, Table 2."""

    def steps(self, n):
        # where K / n is rounded down, the range has one value too many, at 0
        return np.arange(self.table, 0, -self.table / n)[:n].round() - 1


@kind("grid.Leading")
@dataclass(frozen=True)
class Leading(_Discrete):
    """Entries 0, K // n, 2 (K // n), ...: never evaluates at t = 1, so it treats pure noise as slightly clean."""

    offset: int = 0

    def steps(self, n):
        return np.arange(n - 1.0, -1, -1) * (self.table // n) + self.offset


@kind("grid.Linspace")
@dataclass(frozen=True)
class Linspace(_Discrete):
    """n entries evenly from K - 1 down to 0: the last step is all but empty, which leaves a bias at few steps.

    As in diffusers' DDIM and PNDM; its DPM-Solver and UniPC space n + 1 entries and leave out the last.
    """

    def steps(self, n):
        return np.linspace(0, self.table - 1, n).round()[::-1]
