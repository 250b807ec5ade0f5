"""Noise schedules: the pair (alpha, sigma) of x_t = alpha(t) x_0 + sigma(t) eps.

Time runs from 0 (data) to 1 (noise). A schedule is nothing but this pair; what else is needed follows from it:

    rates     d alpha/dt and d sigma/dt                 (the velocity of the path)
    angle     w = atan2(sigma, alpha) in [0, pi/2]      (finite at both ends of every schedule; the internal clock)
    logsnr    log(alpha^2 / sigma^2) in [-inf, inf]     (the clock of the exponential integrators)
    time      the inverse of logsnr

Everything here is float64: `t` may be a float or a tensor, results are float64 tensors of its shape.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError


def as_time(t: float | Tensor) -> Tensor:
    """`t` as a float64 tensor, on its own device."""
    return t.double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


class Schedule(ABC):
    """The pair (alpha, sigma) as functions of t in [0, 1]; subclasses are frozen dataclasses of their constants."""

    @abstractmethod
    def alpha_sigma(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(alpha(t), sigma(t)), each of t's shape."""

    @abstractmethod
    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt); sigma's may be infinite at t = 0, where sigma ~ sqrt(t)."""

    @abstractmethod
    def time(self, logsnr: float | Tensor) -> Tensor:
        """The t at which log(alpha^2 / sigma^2) = logsnr; values beyond the ends give times outside [0, 1]."""

    def angle(self, t: float | Tensor) -> Tensor:
        """w = atan2(sigma, alpha), rising from near 0 to at most pi/2."""
        alpha, sigma = self.alpha_sigma(t)
        return torch.atan2(sigma, alpha)

    def logsnr(self, t: float | Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), falling in t; +inf where sigma = 0 and -inf where alpha = 0."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log())

    def time_at_angle(self, w: float | Tensor) -> Tensor:
        """The inverse of `angle`."""
        w = as_time(w)
        return self.time(2 * (w.cos().log() - w.sin().log()))


@kind("schedule.VP")
@dataclass(frozen=True)
class VP(Schedule):
    """Variance preserving with a linear rate: beta(t) = beta_0 + t (beta_1 - beta_0), the limit of DDPM's table.

    alpha = exp(-int beta / 2), sigma^2 = 1 - alpha^2.  Song et al. 2021, arXiv:2011.13456, Eq. 11 and 33.
    """

    beta_0: float = 0.1
    beta_1: float = 20.0

    def __post_init__(self):
        if not (self.beta_0 > 0 and self.beta_1 >= self.beta_0):
            raise UserError(f"VP needs 0 < beta_0 <= beta_1, not {self.beta_0} and {self.beta_1}.")

    def _integral(self, t: Tensor) -> Tensor:
        return t * self.beta_0 + t**2 * (self.beta_1 - self.beta_0) / 2

    def alpha_sigma(self, t):
        area = self._integral(as_time(t))
        return (-area / 2).exp(), (-torch.expm1(-area)).sqrt()

    def rates(self, t):
        t = as_time(t)
        alpha, sigma = self.alpha_sigma(t)
        beta = self.beta_0 + t * (self.beta_1 - self.beta_0)
        return -beta * alpha / 2, beta * alpha**2 / (2 * sigma)

    def time(self, logsnr):
        # alpha^2 = sigmoid(logsnr), so the integral of beta is -log sigmoid(logsnr): solve the quadratic stably
        area = -torch.nn.functional.logsigmoid(as_time(logsnr))
        slope = self.beta_1 - self.beta_0
        return 2 * area / (self.beta_0 + (self.beta_0**2 + 2 * slope * area).sqrt())


@kind("schedule.Cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)), sigma^2 = 1 - alpha^2.

    Nichol and Dhariwal 2021, arXiv:2102.09672, Eq. 17 (their f is alpha^2). alpha(1) = 0: it ends in pure noise.
    """

    s: float = 0.008

    def __post_init__(self):
        if not self.s > 0:
            raise UserError(f"Cosine needs an offset s > 0, not {self.s}; without an offset it is Trig.")

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.s / (1 + self.s)

    def alpha_sigma(self, t):
        t = as_time(t)
        u = math.pi / 2 * t / (1 + self.s)
        # 1 - cos^2(a + u)/cos^2(a) = sin(u) sin(2a + u)/cos^2(a): no cancellation near t = 0
        sigma = (u.sin() * (2 * self._start + u).sin()).clamp_min(0).sqrt() / math.cos(self._start)
        # cos(a + u) written from the other end, so that alpha(1) is exactly 0
        alpha = (math.pi / 2 * (1 - t) / (1 + self.s)).sin() / math.cos(self._start)
        return alpha, sigma.clamp_max(1)

    def rates(self, t):
        t = as_time(t)
        alpha, sigma = self.alpha_sigma(t)
        speed = math.pi / 2 / (1 + self.s)
        d_alpha = -speed * (speed * (1 - t)).cos() / math.cos(self._start)
        return d_alpha, -alpha * d_alpha / sigma

    def time(self, logsnr):
        alpha = torch.sigmoid(as_time(logsnr)).sqrt()
        return 1 - 2 / math.pi * (1 + self.s) * torch.asin(alpha * math.cos(self._start))


@kind("schedule.VE")
@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    Song et al. 2021, arXiv:2011.13456, Eq. 30. sigma(0) = sigma_min, not 0.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        _check_sigmas(self)

    def alpha_sigma(self, t):
        t = as_time(t)
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def rates(self, t):
        alpha, sigma = self.alpha_sigma(t)
        return torch.zeros_like(alpha), sigma * math.log(self.sigma_max / self.sigma_min)

    def time(self, logsnr):
        log_sigma = -as_time(logsnr) / 2
        return (log_sigma - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@kind("schedule.EDM")
@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma^(1/rho) linear in t from sigma_min to sigma_max.

    Karras et al. 2022, arXiv:2206.00364, Eq. 5 read as a schedule. sigma(0) = sigma_min, not 0.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        _check_sigmas(self)
        if not self.rho > 0:
            raise UserError(f"EDM needs rho > 0, not {self.rho}.")

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def alpha_sigma(self, t):
        t = as_time(t)
        low, high = self._roots
        return torch.ones_like(t), (low + t * (high - low)) ** self.rho

    def rates(self, t):
        t = as_time(t)
        low, high = self._roots
        return torch.zeros_like(t), self.rho * (high - low) * (low + t * (high - low)) ** (self.rho - 1)

    def time(self, logsnr):
        low, high = self._roots
        return ((-as_time(logsnr) / (2 * self.rho)).exp() - low) / (high - low)


def _check_sigmas(schedule: VE | EDM) -> None:
    if not 0 < schedule.sigma_min < schedule.sigma_max:
        raise UserError(
            f"{type(schedule).__name__} needs 0 < sigma_min < sigma_max, "
            f"not {schedule.sigma_min} and {schedule.sigma_max}."
        )


@kind("schedule.Flow")
@dataclass(frozen=True)
class Flow(Schedule):
    """The straight path alpha = 1 - t, sigma = t.

    Lipman et al. 2023, arXiv:2210.02747, Example II; Liu et al. 2023, arXiv:2209.03003, Eq. 1.
    """

    def alpha_sigma(self, t):
        t = as_time(t)
        return 1 - t, t.clone()

    def rates(self, t):
        t = as_time(t)
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, logsnr):
        return torch.sigmoid(-as_time(logsnr) / 2)


@kind("schedule.Trig")
@dataclass(frozen=True)
class Trig(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2). Lu and Song 2024, arXiv:2410.11081, with t scaled to [0, 1]."""

    def alpha_sigma(self, t):
        t = as_time(t)
        # cos written as a sine, so that alpha(1) is exactly 0
        return (math.pi / 2 * (1 - t)).sin(), (math.pi / 2 * t).sin()

    def rates(self, t):
        alpha, sigma = self.alpha_sigma(t)
        return -math.pi / 2 * sigma, math.pi / 2 * alpha

    def time(self, logsnr):
        return 2 / math.pi * torch.atan((-as_time(logsnr) / 2).exp())


@kind("schedule.Shifted")
@dataclass(frozen=True)
class Shifted(Schedule):
    """Another schedule at the time u = shift t / (1 + (shift - 1) t): more noise in mid-course for larger pictures.

    On `Flow` this multiplies sigma/alpha by `shift`.  Esser et al. 2024, arXiv:2403.03206, Eq. 23.
    """

    base: Schedule
    shift: float

    def __post_init__(self):
        if not self.shift > 0:
            raise UserError(f"Shifted needs shift > 0, not {self.shift}.")

    def _warp(self, t: Tensor) -> Tensor:
        # 1 + (shift - 1) t written so that 1 maps to exactly 1
        return self.shift * t / (1 - t + self.shift * t)

    def alpha_sigma(self, t):
        return self.base.alpha_sigma(self._warp(as_time(t)))

    def rates(self, t):
        t = as_time(t)
        speed = self.shift / (1 + (self.shift - 1) * t) ** 2
        d_alpha, d_sigma = self.base.rates(self._warp(t))
        return speed * d_alpha, speed * d_sigma

    def time(self, logsnr):
        u = self.base.time(logsnr)
        return u / (u + self.shift * (1 - u))


@kind("schedule.Tabulated")
@dataclass(frozen=True)
class Tabulated(Schedule):
    """A discrete table: alpha(k/K)^2 = alphas_bar[k - 1] for k = 1..K, alpha(0) = 1, with the angle linear between.

    alphas_bar: falling values in [0, 1), the cumulative products of 1 - beta.  Ho et al. 2020, arXiv:2006.11239, Eq. 4.
    """

    alphas_bar: tuple[float, ...]
    _knots: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        table = (1.0, *self.alphas_bar)
        if len(table) < 2 or not all(1 >= a > b >= 0 for a, b in itertools.pairwise(table)):
            raise UserError("Tabulated needs alphas_bar that fall strictly within [0, 1).")
        # atan2(sqrt(1 - a), sqrt(a)): accurate at both ends
        knots = tuple(math.atan2(math.sqrt(1 - a), math.sqrt(a)) for a in table)
        object.__setattr__(self, "_knots", knots)

    @classmethod
    def linear(cls, beta_0: float = 1e-4, beta_1: float = 0.02, steps: int = 1000) -> Tabulated:
        """DDPM's table: `steps` betas evenly spaced from beta_0 to beta_1.  Ho et al. 2020, section 4."""
        betas = torch.linspace(beta_0, beta_1, steps, dtype=torch.float64)
        return cls(tuple((1 - betas).cumprod(0).tolist()))

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The angles at the two knots around t, and how far t lies between them."""
        count = len(self.alphas_bar)
        knots = torch.tensor(self._knots, dtype=torch.float64, device=t.device)
        k = (t * count).floor().clamp(0, count - 1).long()
        return knots[k], knots[k + 1], t * count - k

    def angle(self, t):
        # lerp is exact at both ends, so a table that ends in 0 ends in pi/2
        return torch.lerp(*self._segment(as_time(t)))

    def alpha_sigma(self, t):
        w = self.angle(t)
        # the last knot may be pi/2 itself, whose cosine is 6e-17 and not 0
        return torch.where(w >= math.pi / 2, 0.0, w.cos()), w.sin()

    def rates(self, t):
        t = as_time(t)
        low, high, _ = self._segment(t)
        alpha, sigma = self.alpha_sigma(t)
        speed = (high - low) * len(self.alphas_bar)
        return -sigma * speed, alpha * speed

    def time(self, logsnr):
        w = torch.atan((-as_time(logsnr) / 2).exp())
        count = len(self.alphas_bar)
        knots = torch.tensor(self._knots, dtype=torch.float64, device=w.device)
        k = (torch.searchsorted(knots, w.contiguous(), right=True) - 1).clamp(0, count - 1)
        return (k + (w - knots[k]) / (knots[k + 1] - knots[k])) / count

    def time_of_step(self, k: int) -> float:
        """The time of the k-th entry of the table, counted from 0 as the discrete papers' code does."""
        return (k + 1) / len(self.alphas_bar)


@kind("schedule.Learned")
@dataclass(frozen=True)
class Learned(Schedule):
    """Another schedule, at the pace of a table: its time is places[k] at times[k], on straight lines between.

    times, places: at least two numbers each, rising strictly from 0 to 1; so the ends are the base's own, and the rates
    jump at the knots. `objective.fit_schedule` makes such tables.  Kingma et al. 2021, arXiv:2107.00630, section 5.3.
    """

    base: Schedule
    times: tuple[float, ...]
    places: tuple[float, ...]

    def __post_init__(self):
        for table in (self.times, self.places):
            rising = all(a < b for a, b in itertools.pairwise(table))
            if len(table) != len(self.times) or len(table) < 2 or not rising or (table[0], table[-1]) != (0, 1):
                raise UserError("Learned needs two tables of one length, each rising strictly from 0 to 1.")

    def alpha_sigma(self, t):
        place, _ = _straight(as_time(t), self.times, self.places)
        return self.base.alpha_sigma(place)

    def rates(self, t):
        place, slope = _straight(as_time(t), self.times, self.places)
        d_alpha, d_sigma = self.base.rates(place)
        return slope * d_alpha, slope * d_sigma

    def time(self, logsnr):
        t, _ = _straight(self.base.time(logsnr), self.places, self.times)
        return t


def _straight(x: Tensor, xs: tuple[float, ...], ys: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The straight lines through the points (xs, ys), the outer ones continued: their height and slope at x."""
    xs, ys = (torch.tensor(values, dtype=torch.float64, device=x.device) for values in (xs, ys))
    k = (torch.searchsorted(xs, x.detach().contiguous(), right=True) - 1).clamp(0, len(xs) - 2)
    width, rise = xs.diff()[k], ys.diff()[k]
    # lerp is exact at both of its ends
    return torch.lerp(ys[k], ys[k + 1], (x - xs[k]) / width), rise / width
