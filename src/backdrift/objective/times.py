"""At which times a network is trained: laws on [0, 1], drawn so that every batch is spread evenly over them.

A law is its quantile function. The uniform numbers put into it are one Weyl sequence over the stream of samples,

    u_i = fraction(i / golden ratio + shift),      shift keyed by the seed and the stream,

so each u_i is uniform, any run of consecutive samples is spread nearly as evenly as a grid, and sample i has the same
time however the stream is cut into batches. Even spreading removes most of the variance that the choice of times adds
to the loss (Kingma et al. 2021, arXiv:2107.00630, whose low-discrepancy sampler is a grid per batch).

A clean picture teaches nothing and the weights of most targets are infinite there, so no time is nearer to the data
than noise of `FLOOR` times the signal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.schedule import Schedule

FLOOR = 1e-3
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 over the golden ratio, as a signed integer


def spread(noise: Noise) -> Tensor:
    """The Weyl sequence above at the samples of `noise`: float64 (B,) in (0, 1)."""
    shift = Noise(noise.seed, torch.zeros(1, dtype=torch.long), noise.stream).uniform(torch.zeros(1).double())
    turns = noise.index * _GOLDEN  # int64 wraps, which is the fraction of a turn, exact for any sample number
    return ((turns.double() * 2.0**-64 + shift) % 1).clamp(2.0**-53, 1 - 2.0**-53)


def first_time(schedule: Schedule) -> float:
    """The smallest time with sigma >= FLOOR alpha: 0 for schedules that start there or beyond."""
    alpha, sigma = schedule.alpha_sigma(0.0)
    if sigma >= FLOOR * alpha:
        return 0.0
    return float(schedule.time(-2 * math.log(FLOOR)).clamp(0, 1))


class Times(ABC):
    """A law of training times; subclasses are frozen dataclasses."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The time below which a fraction `u` of the draws lie, float64 of u's shape; may leave [0, 1]."""

    def times(self, noise: Noise, schedule: Schedule) -> Tensor:
        """One time per sample of `noise`: float64 (B,), with sigma >= FLOOR alpha, at most 1."""
        return self.quantile(spread(noise), schedule).clamp(first_time(schedule), 1)


@kind("times.Uniform")
@dataclass(frozen=True)
class Uniform(Times):
    """Uniform in t."""

    def quantile(self, u, schedule):
        return u


@kind("times.Angle")
@dataclass(frozen=True)
class Angle(Times):
    """Uniform in the noise angle atan2(sigma, alpha scale), whatever the schedule.

    scale: with the data's standard deviation, half of the draws have more noise than signal on a schedule that reaches
        both ends.
    """

    scale: float = 1.0

    def __post_init__(self):
        _positive(self, "scale")

    def quantile(self, u, schedule):
        alpha, sigma = schedule.alpha_sigma(torch.tensor([first_time(schedule), 1.0], dtype=torch.float64))
        low, high = torch.atan2(sigma, alpha * self.scale)
        w = low + u * (high - low)
        return schedule.time(2 * (w.cos().log() - w.sin().log() - math.log(self.scale)))


@kind("times.LogitNormal")
@dataclass(frozen=True)
class LogitNormal(Times):
    """t = 1 / (1 + exp(-z)), z normal.  Esser et al. 2024, arXiv:2403.03206, Eq. 19."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        _positive(self, "std")

    def quantile(self, u, schedule):
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@kind("times.LogNormalSigma")
@dataclass(frozen=True)
class LogNormalSigma(Times):
    """log(sigma / alpha) normal, on any schedule.  Karras et al. 2022, arXiv:2206.00364, Table 1 (training)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        _positive(self, "std")

    def quantile(self, u, schedule):
        return schedule.time(-2 * (self.mean + self.std * torch.special.ndtri(u)))


def _positive(law: Times, name: str) -> None:
    if not getattr(law, name) > 0:
        raise UserError(f"{type(law).__name__} needs a positive {name}, not {getattr(law, name)}.")
