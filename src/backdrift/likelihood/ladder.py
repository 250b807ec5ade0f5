"""Where the bound asks the denoiser.

With g = alpha^2 / sigma^2, a step from t to s < t whose variance lies in log a fraction f of the way from the bridge's
own ("small": sigma_s^2 var_ts / sigma_t^2) to the step's ("large": var_ts) costs, element by element,

    KL = (r - 1 - log r) / 2 + r / 2 (g_s - g_t) e^2,      r = (sigma_s^2 / sigma_t^2)^f,   e = x_0 - E[x_0 | x_t]

(Ho et al. 2020, arXiv:2006.11239, Eq. 8 with both variances of its section 3.2; Nichol and Dhariwal 2021,
arXiv:2102.09672, Eq. 15). With ever more steps r = 1 and the sum becomes int e^2 dg / 2, whatever the schedule
(Kingma et al. 2021, arXiv:2107.00630, Eq. 15). For Gaussian data of variance v, e^2 is v / (1 + v g): in the clock
u = log(1 + v g) the integrand is constant. Times are drawn uniformly in u, or in the time of another schedule that was
learned for the purpose, one from each of equal strata.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.likelihood.estimate import at_least
from backdrift.noise import Noise
from backdrift.objective.times import first_time
from backdrift.sample.grids import Grid, Uniform
from backdrift.schedule import Schedule


class Node(NamedTuple):
    """One place, each (B,) float64: its time, g_s - g_t, sigma_s^2 / sigma_t^2, and how many steps it stands for."""

    t: Tensor
    width: Tensor
    shrink: Tensor
    weight: Tensor


class Ladder(ABC):
    """The noise levels of a bound; subclasses are frozen dataclasses. fraction: f above."""

    fraction: float

    @abstractmethod
    def end(self, schedule: Schedule) -> float:
        """The time of the finest noisy state, which the decoder is given."""

    @abstractmethod
    def nodes(self, schedule: Schedule, scale: float, noise: Noise) -> Iterator[Node]:
        """The places for one estimate, from t = 1 to the end. scale: sqrt(v) above."""


@dataclass(frozen=True)
class Steps(Ladder):
    """A model of `steps` steps from t = 1 to 0, the last of which is the decoder's.

    fraction: 0 is DDPM's small variance, 1 its large one; a learned variance of the denoiser takes precedence. grid:
    the times; DDPM's own model is 1000 steps of the uniform grid on `Tabulated.linear()`. evaluations: None evaluates
    every step; a number draws so many, one from each stratum of equal importance, and leaves the expectation as it is.
    first: the time at which the last step starts, by default the grid's own; the others are the grid from 1 to there.

    Raises `UserError` for less than 2 steps or 1 evaluation, or a fraction outside [0, 1].
    """

    steps: int = 1000
    fraction: float = 0.0
    grid: Grid = field(default_factory=Uniform)
    evaluations: int | None = None
    first: float | None = None

    def __post_init__(self):
        at_least(2, self.steps, "steps, of which the last is the decoder's")
        at_least(1, 1 if self.evaluations is None else self.evaluations, "noise level")
        if not 0 <= self.fraction <= 1:
            raise UserError(f"A variance fraction lies between 0 (small) and 1 (large), not {self.fraction}.")

    def end(self, schedule):
        return float(self._times(schedule)[-1])

    def _times(self, schedule: Schedule) -> Tensor:
        """From 1 down to the end."""
        if self.first is None:
            return self.grid.times(schedule, self.steps)[:-1]
        return self.grid.times(schedule, self.steps - 1, end=self.first)

    def nodes(self, schedule, scale, noise):
        times = self._times(schedule)
        alpha, sigma = schedule.alpha_sigma(times)
        snr = (alpha / sigma) ** 2
        width, shrink = snr.diff(), (sigma[1:] / sigma[:-1]) ** 2
        count = len(noise.index)
        if self.evaluations is None:
            for row in zip(times[:-1], width, shrink, torch.ones_like(width), strict=True):
                yield Node(*(value.expand(count) for value in row))
            return
        share = (scale**2 * snr).log1p().diff()
        share = share / share.sum()
        for u in _strata(noise, self.evaluations):
            n = torch.searchsorted(share.cumsum(0), u, right=True).clamp_max(len(share) - 1)
            yield Node(times[n], width[n], shrink[n], 1 / (self.evaluations * share[n]))


@dataclass(frozen=True)
class Continuous(Ladder):
    """The limit of infinitely many steps, as an integral over `evaluations` strata from t = 1 to `first`.

    first: by default where sigma = 1e-3 alpha. clock: strata of equal time on this schedule, such as one made by
    `objective.fit_schedule`; None is u above.

    Raises `UserError` for less than one evaluation, or a clock whose schedule ends before the process does.
    """

    evaluations: int = 100
    first: float | None = None
    clock: Schedule | None = None
    fraction: ClassVar[float] = 0.0

    def __post_init__(self):
        at_least(1, self.evaluations, "noise level")

    def end(self, schedule):
        return first_time(schedule) if self.first is None else self.first

    def nodes(self, schedule, scale, noise):
        if self.clock is None:
            alpha, sigma = schedule.alpha_sigma(1.0)
            return self.above(float(alpha / sigma) ** 2, schedule, scale, noise)
        ends = torch.tensor([self.end(schedule), 1.0], dtype=torch.float64)
        low, high = self.clock.time(schedule.logsnr(ends)).tolist()
        if not (-1e-9 < low < high < 1 + 1e-9):
            raise UserError(f"{self.clock} does not reach all noise levels of the bound, so it cannot be its clock.")
        return self.between(max(low, 0.0), min(high, 1.0), self.clock, schedule, noise)

    def above(self, lowest: float, schedule: Schedule, scale: float, noise: Noise) -> Iterator[Node]:
        """The places from the signal-to-noise ratio `lowest` on; below that of t = 1 the time stays 1."""
        first = self.end(schedule)
        alpha, sigma = schedule.alpha_sigma(first)
        low, high = (torch.as_tensor(scale**2 * g).log1p() for g in (lowest, (alpha / sigma) ** 2))
        for u in _strata(noise, self.evaluations):
            u = low + (high - low) * u
            t = schedule.time((u.expm1() / scale**2).log()).clamp(first, 1)
            width = (high - low) / self.evaluations * u.exp() / scale**2
            yield Node(t, width, torch.ones_like(t), torch.ones_like(t))

    def between(self, low: float, high: float, clock: Schedule, schedule: Schedule, noise: Noise) -> Iterator[Node]:
        """The places from the clock's time `high` down to `low`."""
        first = self.end(schedule)
        for u in _strata(noise, self.evaluations):
            place = high + (low - high) * u
            (alpha, sigma), (d_alpha, d_sigma) = clock.alpha_sigma(place), clock.rates(place)
            slope = 2 * alpha * (alpha * d_sigma - d_alpha * sigma) / sigma**3  # -dg / d place
            t = schedule.time(clock.logsnr(place)).clamp(first, 1)
            yield Node(t, (high - low) / self.evaluations * slope, torch.ones_like(t), torch.ones_like(t))


def _strata(noise: Noise, count: int) -> Iterator[Tensor]:
    """(B,) uniform in each of `count` equal parts of [0, 1], in order."""
    uniform = noise.at("time").uniform(torch.empty(len(noise.index), count, dtype=torch.float64))
    return iter(((torch.arange(count) + uniform) / count).T.contiguous())
