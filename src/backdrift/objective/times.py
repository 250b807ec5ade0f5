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
from typing import NamedTuple

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


class Drawn(NamedTuple):
    """Training times t, what a loss there counts for, and the quantiles of the law that they are: float64 (B,) each."""

    t: Tensor
    share: Tensor
    place: Tensor


class Times(ABC):
    """A law of training times; subclasses are frozen dataclasses.

    A law that follows the losses (`importance`) keeps what it knows of them in a tensor, its memory, that the training
    carries along; the laws here keep nothing.
    """

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The time below which a fraction `u` of the draws lie, float64 of u's shape; may leave [0, 1]."""

    @abstractmethod
    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        """The probability per unit of time at t: 1 / (d quantile / du), float64 of t's shape."""

    def times(self, noise: Noise, schedule: Schedule) -> Tensor:
        """One time per sample of `noise`: float64 (B,), with sigma >= FLOOR alpha, at most 1."""
        return self.within(spread(noise), schedule)

    def within(self, u: Tensor, schedule: Schedule) -> Tensor:
        """`quantile`, cut where training times end."""
        return self.quantile(u, schedule).clamp(first_time(schedule), 1)

    def memory(self) -> Tensor:
        """What the law knows of the losses before there are any."""
        return torch.zeros(0, dtype=torch.float64)

    def draw(self, noise: Noise, schedule: Schedule, memory: Tensor) -> Drawn:
        """One time per sample of `noise`. The mean of share times loss is the mean loss under `quantile`."""
        u = spread(noise)
        return Drawn(self.within(u, schedule), torch.ones_like(u), u)

    def learn(self, memory: Tensor, place: Tensor, losses: Tensor) -> Tensor:
        """The memory after these losses (B,) of samples drawn at `place` (B,)."""
        return memory


@kind("times.Uniform")
@dataclass(frozen=True)
class Uniform(Times):
    """Uniform in t."""

    def quantile(self, u, schedule):
        return u

    def density(self, t, schedule):
        return torch.ones_like(t)


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

    def _ends(self, schedule: Schedule) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(torch.tensor([first_time(schedule), 1.0], dtype=torch.float64))
        return torch.atan2(sigma, alpha * self.scale)

    def density(self, t, schedule):
        low, high = self._ends(schedule)
        (alpha, sigma), (d_alpha, d_sigma) = schedule.alpha_sigma(t), schedule.rates(t)
        square = sigma**2 + (alpha * self.scale) ** 2
        return self.scale * (d_sigma * alpha - d_alpha * sigma) / square / (high - low)

    def quantile(self, u, schedule):
        low, high = self._ends(schedule)
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

    def density(self, t, schedule):
        return _normal((torch.logit(t) - self.mean) / self.std) / (self.std * t * (1 - t))


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

    def density(self, t, schedule):
        (alpha, sigma), (d_alpha, d_sigma) = schedule.alpha_sigma(t), schedule.rates(t)
        rate = d_sigma / sigma - d_alpha / alpha
        return _normal((-schedule.logsnr(t) / 2 - self.mean) / self.std) * rate / self.std


def _normal(z: Tensor) -> Tensor:
    """The standard normal density."""
    return (-(z**2) / 2).exp() / math.sqrt(2 * math.pi)


def _positive(law: Times, name: str) -> None:
    if not getattr(law, name) > 0:
        raise UserError(f"{type(law).__name__} needs a positive {name}, not {getattr(law, name)}.")
