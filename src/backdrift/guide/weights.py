"""Guidance weights that change along the way: laws of the noise level, or a weight for each row of a plan.

Guidance does harm where it acts on almost pure noise and nothing where the picture is settled, so a constant weight is
seldom the best. A law is called with the time and the schedule; a number is the constant law.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.schedule import Schedule


class Weights(ABC):
    """A law of guidance weights; subclasses are frozen dataclasses."""

    @abstractmethod
    def at(self, t: float | Tensor, schedule: Schedule) -> float | Tensor:
        """The weight at time t: a number for a number, (B,) for (B,)."""


@kind("weights.Interval")
@dataclass(frozen=True)
class Interval(Weights):
    """`weight` where low < sigma / alpha <= high, and 1, the conditional model, elsewhere.

    Kynkäänniemi et al. 2024, arXiv:2404.07724, Eq. 5.
    """

    weight: float
    low: float
    high: float

    def __post_init__(self):
        check(self.weight)
        if not 0 <= self.low < self.high:
            raise UserError(f"An interval of noise levels needs 0 <= low < high, not {self.low} and {self.high}.")

    def at(self, t, schedule):
        alpha, sigma = schedule.alpha_sigma(t)
        inside = (sigma > self.low * alpha) & (sigma <= self.high * alpha)
        return _like(t, torch.where(inside, self.weight, 1.0))


@kind("weights.Ramp")
@dataclass(frozen=True)
class Ramp(Weights):
    """From `first` at pure noise to `weight` at the data: first + (weight - first) (1 - 2 w / pi)^power, w the angle.

    Wang et al. 2024, arXiv:2404.13040, found weights that rise along sampling the best of monotone ones (section 4).
    """

    weight: float
    first: float = 1.0
    power: float = 1.0

    def __post_init__(self):
        check(self.weight)
        check(self.first)
        if not self.power > 0:
            raise UserError(f"The power of a ramp must be positive, not {self.power}.")

    def at(self, t, schedule):
        progress = (1 - schedule.angle(t) * (2 / math.pi)).clamp(0, 1)
        return _like(t, self.first + (self.weight - self.first) * progress**self.power)


@kind("weights.Rows")
@dataclass(frozen=True)
class Rows(Weights):
    """One weight for each row of a plan, found by its time. Make it with `plus`, or from any two tuples."""

    times: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if len(self.times) != len(self.weights):
            raise UserError(f"There are {len(self.weights)} weights for {len(self.times)} times; give one for each.")

    def at(self, t, schedule):
        for time, weight in zip(self.times, self.weights, strict=True):
            if abs(time - float(t)) < 1e-9:
                return weight
        raise UserError(f"These guidance weights belong to other times: none of their rows is at t = {float(t):.6g}.")


def plus(schedule: Schedule, times: Sequence[float] | Tensor, strength: float) -> Rows:
    """CFG++ as weights for DDIM along the falling `times` (n + 1,).

    CFG++ moves to alpha_s D + sigma_s eps with the guided D = D_0 + strength (D_1 - D_0) but the unguided eps. On DDIM
    that is ordinary guidance with the weight

        w = strength alpha_s / (alpha_s - sigma_s alpha_t / sigma_t).

    strength: 0 to 1. Chung et al. 2024, arXiv:2406.08070, Algorithm 2.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"CFG++ takes a strength from 0 to 1, not {strength}.")
    times = torch.as_tensor(times, dtype=torch.float64)
    (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(times[:-1]), schedule.alpha_sigma(times[1:])
    weights = strength * alpha_s / (alpha_s - sigma_s * alpha / sigma)
    return Rows(tuple(times[:-1].tolist()), tuple(weights.tolist()))


def check(weight: float) -> None:
    """Raises `UserError` for a weight that makes no sense."""
    if not 0 <= weight < math.inf:
        raise UserError(f"A guidance weight is 0 (ignore the condition), 1 (follow it) or more, not {weight}.")


def _like(t: float | Tensor, values: Tensor) -> float | Tensor:
    return values if isinstance(t, Tensor) and t.ndim else float(values)
