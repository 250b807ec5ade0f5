"""Scalings in which the reverse process has no linear part: d(x / c) = f dw, plus noise in the stochastic ones.

Each choice of c(alpha, sigma) gives a clock w and a direction f = a x_0 + b eps that is constant when x_0 and eps are:

    gauge   c                        f            w                        dw in terms of r = sigma / alpha
    NOISE   alpha                    eps          sigma / alpha            dr
    DATA    sigma                    x_0          alpha / sigma            -dr / r^2
    FLOW    alpha + sigma            eps - x_0    sigma / (alpha + sigma)  dr / (1 + r)^2
    TRIG    sqrt(alpha^2 + sigma^2)  v            atan2(sigma, alpha)      dr / (1 + r^2)

A step of Euler's rule is the same in the first three (it is DDIM's); they part at higher order. FLOW and TRIG are
finite at both ends of every schedule.

DATA is one of a family, a function phi of r each: c = alpha phi, f = x_0, w = 1 / phi. phi = r is DATA itself; a phi
that falls faster forgets more of x_t in a step and adds fresh noise of variance sigma_s^2 - (c_s / c_t)^2 sigma_t^2 in
return, so that the law at every time stays the process's own (Cui et al. 2023, arXiv:2309.06169, Eq. 10 to 15):
`StochasticGauge` has phi = r^(1 + tau^2), `ExtendedGauge` phi = r (exp(r^0.3) + 10).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.sample.trace import Linear
from backdrift.schedule import Schedule


class Gauge(ABC):
    """Methods take alpha and sigma as floats, or v = log(sigma / alpha) as a numpy array."""

    stochastic: bool = False

    @abstractmethod
    def scale(self, alpha: float, sigma: float) -> float:
        """c."""

    @abstractmethod
    def row(self, alpha: float, sigma: float) -> tuple[float, float]:
        """(a, b) with f = a x_0 + b eps."""

    @abstractmethod
    def clock(self, alpha: float, sigma: float) -> float:
        """w."""

    @abstractmethod
    def ratio(self, clock: float) -> float:
        """The inverse of `clock`: r = sigma / alpha."""

    @abstractmethod
    def rate(self, v: np.ndarray) -> np.ndarray:
        """dw / dv."""

    def direction(self, alpha: float, sigma: float) -> tuple[float, float]:
        """(p, q) with f = p x_t + q x_0, by eps = (x_t - alpha x_0) / sigma. Needs sigma > 0 where f contains eps."""
        a, b = self.row(alpha, sigma)
        if b == 0:
            return 0.0, a
        return b / sigma, a - b * alpha / sigma

    def keep(self, at: tuple[float, float], to: tuple[float, float]) -> float:
        """What a step of first order keeps of x_t when D is held constant; less than sigma_s / sigma_t adds noise."""
        return to[1] / at[1]


@kind("gauge.Noise")
@dataclass(frozen=True)
class NoiseGauge(Gauge):
    def scale(self, alpha, sigma):
        return alpha

    def row(self, alpha, sigma):
        return 0.0, 1.0

    def clock(self, alpha, sigma):
        return sigma / alpha if alpha else math.inf

    def ratio(self, clock):
        return clock

    def rate(self, v):
        return np.exp(v)


@kind("gauge.Flow")
@dataclass(frozen=True)
class FlowGauge(Gauge):
    def scale(self, alpha, sigma):
        return alpha + sigma

    def row(self, alpha, sigma):
        return -1.0, 1.0

    def clock(self, alpha, sigma):
        return sigma / (alpha + sigma)

    def ratio(self, clock):
        return clock / (1 - clock)

    def rate(self, v):
        return 0.25 / np.cosh(v / 2) ** 2


@kind("gauge.Trig")
@dataclass(frozen=True)
class TrigGauge(Gauge):
    def scale(self, alpha, sigma):
        return math.hypot(alpha, sigma)

    def row(self, alpha, sigma):
        norm = math.hypot(alpha, sigma)
        return -sigma / norm, alpha / norm

    def clock(self, alpha, sigma):
        return math.atan2(sigma, alpha)

    def ratio(self, clock):
        return math.tan(clock)

    def rate(self, v):
        return 0.5 / np.cosh(v)


class _DataFamily(Gauge):
    """c = alpha phi(r), f = x_0, w = 1 / phi(r), by psi(v) = log(phi / r)."""

    def psi(self, v: float) -> float:
        """log(phi / r) at v = log r, which may be infinite."""
        return 0.0

    def psi_rate(self, v: np.ndarray) -> np.ndarray:
        """d psi / dv."""
        return np.zeros_like(v)

    def _psi_array(self, v: np.ndarray) -> np.ndarray:
        return np.array([self.psi(float(u)) for u in v])

    def scale(self, alpha, sigma):
        psi = self.psi(log_ratio(alpha, sigma)) if sigma else -math.inf
        return sigma * math.exp(psi) if psi < math.inf else math.inf

    def row(self, alpha, sigma):
        return 1.0, 0.0

    def clock(self, alpha, sigma):
        if not alpha:
            return 0.0
        return alpha / self.scale(alpha, sigma) if sigma else math.inf

    def rate(self, v):
        return -(1 + self.psi_rate(v)) * np.exp(-v - self._psi_array(v))

    def ratio(self, clock):
        # -log w = v + psi(v) rises in v: bisection, as phi need not have an inverse in closed form
        low, high, target = -60.0, 60.0, -math.log(clock)
        for _ in range(80):
            mid = (low + high) / 2
            low, high = (mid, high) if mid + self.psi(mid) < target else (low, mid)
        return math.exp(high)

    def keep(self, at, to):
        if not to[1]:
            return 0.0
        fall = self.psi(log_ratio(*to)) - self.psi(log_ratio(*at)) if self.stochastic else 0.0
        return to[1] / at[1] * math.exp(fall)


@kind("gauge.Data")
@dataclass(frozen=True)
class DataGauge(_DataFamily):
    """phi = r."""


@kind("gauge.Stochastic")
@dataclass(frozen=True)
class StochasticGauge(_DataFamily):
    """phi = r^(1 + tau^2): the reverse SDE with tau times its noise. Xue et al. 2023, arXiv:2309.05019, Eq. 7."""

    tau: float = 1.0
    stochastic = True

    def __post_init__(self):
        if not 0 < self.tau < math.inf:
            raise UserError(f"StochasticGauge needs a finite tau > 0, not {self.tau}; without noise it is DATA.")

    def psi(self, v):
        return self.tau**2 * v

    def psi_rate(self, v):
        return np.full_like(v, self.tau**2)


@kind("gauge.Extended")
@dataclass(frozen=True)
class ExtendedGauge(_DataFamily):
    """phi = r (exp(r^0.3) + 10): little noise near the data. Cui et al. 2023, arXiv:2309.06169, ER SDE 5."""

    stochastic = True

    def psi(self, v):
        power = math.exp(0.3 * v) if v < 20 else math.inf
        # log(e^p + 10) without overflow
        return power + math.log1p(10 * math.exp(-power)) if power < math.inf else math.inf

    def psi_rate(self, v):
        power = np.exp(0.3 * v)
        return 0.3 * power / (1 + 10 * np.exp(-power))


def log_ratio(alpha: float, sigma: float) -> float:
    """log(sigma / alpha), infinite at either end."""
    if not sigma:
        return -math.inf
    return math.log(sigma) - math.log(alpha) if alpha else math.inf


NOISE, DATA, FLOW, TRIG = NoiseGauge(), DataGauge(), FlowGauge(), TrigGauge()


Pair = tuple[float, float]  # (alpha, sigma)


def pairs(schedule: Schedule, times: Sequence[float]) -> list[Pair]:
    """(alpha, sigma) as floats at each time."""
    alpha, sigma = schedule.alpha_sigma(torch.tensor(times, dtype=torch.float64))
    return list(zip(alpha.tolist(), sigma.tolist(), strict=True))


def straight(x: Linear, D: Linear, at: Pair, to: Pair, keep: float | None = None) -> Linear:
    """keep x + (alpha_s - keep alpha_t) D, exact if D were constant.

    keep = sigma_s / sigma_t, the default, is DDIM's step alpha_s D + sigma_s eps.  Song et al. 2021, arXiv:2010.02502,
    Eq. 12. A smaller one leaves room for fresh noise of variance sigma_s^2 - keep^2 sigma_t^2.
    """
    (alpha, sigma), (alpha_s, sigma_s) = at, to
    keep = sigma_s / sigma if keep is None else keep
    return keep * x + (alpha_s - keep * alpha) * D


def slope(gauge: Gauge, x: Linear, D: Linear, at: Pair) -> Linear:
    """f, the direction of x / c in the gauge's clock."""
    p, q = gauge.direction(*at)
    return p * x + q * D


def advance(gauge: Gauge, x: Linear, D: Linear, at: Pair, to: Pair) -> Linear:
    """x / c after one Euler step of the gauge's clock."""
    span = gauge.clock(*to) - gauge.clock(*at)
    return x / gauge.scale(*at) + span * slope(gauge, x, D, at)
