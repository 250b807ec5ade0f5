"""The variable of the polynomial in a multistep rule, and exact integrals against a gauge's clock.

A rule replaces the direction f of a gauge by a polynomial in some u along the step and needs int l(u) dw. Which u is a
free choice: the gauge's own clock, log(sigma / alpha), sigma / alpha, or the schedule's time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from backdrift.config import kind
from backdrift.sample.gauge import Gauge, log_ratio
from backdrift.schedule import Schedule

FAR = 45.0
"""|log(sigma / alpha)| that stands for infinity in an integral: what lies beyond is below e^-45."""


class Place(NamedTuple):
    """A time with what a rule needs to know there: alpha, sigma, the gauge's clock w and the variable u."""

    t: float
    alpha: float
    sigma: float
    w: float
    u: float

    @property
    def pair(self) -> tuple[float, float]:
        return self.alpha, self.sigma

    @property
    def finite(self) -> bool:
        return math.isfinite(self.w) and math.isfinite(self.u)


class Variable(ABC):
    """The coordinate u in which f is taken to be a polynomial."""

    @abstractmethod
    def u(self, gauge: Gauge, t: float, alpha: float, sigma: float) -> float:
        """u, which may be infinite where alpha or sigma is 0."""

    @abstractmethod
    def log_ratio(self, gauge: Gauge, schedule: Schedule, u: float) -> float:
        """log(sigma / alpha) at u."""

    @abstractmethod
    def along(self, schedule: Schedule, v: np.ndarray) -> np.ndarray:
        """u at v = log(sigma / alpha)."""

    def measure(self, gauge: Gauge, schedule: Schedule, at: Place, to: Place) -> tuple[np.ndarray, np.ndarray]:
        """Points u and weights dw of a quadrature from `at` to `to`, exact to rounding for polynomials in u.

        Gauss-Legendre in v = log(sigma / alpha) on panels no longer than 1: the integrands are analytic within pi / 2
        of the real axis, so that twelve points a panel leave nothing.
        """
        start, end = (min(max(log_ratio(p.alpha, p.sigma), -FAR), FAR) for p in (at, to))
        edges = np.linspace(start, end, max(1, math.ceil(start - end)) + 1)
        points, weights = _legendre(12)
        half, centre = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
        v = (centre + half * points).ravel()
        return self.along(schedule, v), (half * weights).ravel() * gauge.rate(v)

    def place(self, gauge: Gauge, schedule: Schedule, t: float) -> Place:
        """Everything that a rule needs at time t."""
        alpha, sigma = (float(x) for x in schedule.alpha_sigma(t))
        return Place(float(t), alpha, sigma, gauge.clock(alpha, sigma), self.u(gauge, float(t), alpha, sigma))

    def place_at(self, gauge: Gauge, schedule: Schedule, u: float) -> Place:
        """The place where the variable is u."""
        return self.place(gauge, schedule, float(schedule.time(-2 * self.log_ratio(gauge, schedule, u))))


@kind("variable.Clock")
@dataclass(frozen=True)
class Clock(Variable):
    """u = w, the gauge's own clock."""

    def u(self, gauge, t, alpha, sigma):
        return gauge.clock(alpha, sigma)

    def log_ratio(self, gauge, schedule, u):
        return math.log(gauge.ratio(u))

    def along(self, schedule, v):
        raise TypeError("The gauge's clock is its own measure.")

    def measure(self, gauge, schedule, at, to):
        # polynomials in w itself: four points are exact up to degree seven
        points, weights = _legendre(4)
        half, centre = (to.w - at.w) / 2, (to.w + at.w) / 2
        return centre + half * points, half * weights


@kind("variable.Log")
@dataclass(frozen=True)
class Log(Variable):
    """u = log(sigma / alpha), minus half the log-SNR."""

    def u(self, gauge, t, alpha, sigma):
        return log_ratio(alpha, sigma)

    def log_ratio(self, gauge, schedule, u):
        return u

    def along(self, schedule, v):
        return v


@kind("variable.Ratio")
@dataclass(frozen=True)
class Ratio(Variable):
    """u = sigma / alpha."""

    def u(self, gauge, t, alpha, sigma):
        return sigma / alpha if alpha else math.inf

    def log_ratio(self, gauge, schedule, u):
        return math.log(u)

    def along(self, schedule, v):
        return np.exp(v)


@kind("variable.Time")
@dataclass(frozen=True)
class Time(Variable):
    """u = t, the schedule's own time."""

    def u(self, gauge, t, alpha, sigma):
        return t

    def log_ratio(self, gauge, schedule, u):
        return -float(schedule.logsnr(u)) / 2

    def along(self, schedule, v):
        return schedule.time(-2 * torch.from_numpy(v)).numpy()


CLOCK, LOG, RATIO, TIME = Clock(), Log(), Ratio(), Time()


@lru_cache(maxsize=4)
def _legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(count)
