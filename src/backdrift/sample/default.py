"""What `sample` uses when nothing is named: one solver and one grid for every Gaussian process and every budget.

Divide the data by a scale k. In the coordinates x / (alpha k + sigma) and the clock w = sigma / (alpha k + sigma) every
Gaussian process is the same straight path from data (w = 0) to noise (w = 1),

    d(x / c) = f dw,     c = alpha k + sigma,     f = eps - x_0 / k,

and only the two ends of the clock differ from schedule to schedule, so one rule serves all of them. The rule is the
Adams pair of orders three and four in that clock: predict with the quadratic through the last three f, evaluate, take
the step again with the cubic through the new f too, and go on; one evaluation a step. The grid is uniform in the same
clock but for its last interval, which is half as long and is predicted with a straight line, because nothing corrects
it any more.

A long step predicts too much: the answer x_0 settles on its way to the data, and what it did before is no measure of
what it will do. So a prediction over a step of length h places the past values 1 + (h / `LONG`)^2 times as far back as
they are, which divides the slope by as much and the curvature by its square. The corrector uses the true places, and
the change vanishes fast enough to leave the order of convergence.

k lies between the two scales at which data resolve. The noise drowns details when it is as large as a coordinate's
standard deviation s, which every run records, and the choice between distant data when it is as large as their
distance, which is sqrt(D) s for D coordinates. k is `SHARE` of the geometric mean of the two, D^(1/4) s.

The three constants were chosen on mixtures of 2 to 64 dimensions and looked at on two trained networks, then frozen;
docs/measured.md says what they reach elsewhere.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from backdrift.config import kind
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.exact.denoiser import ExactDenoiser
from backdrift.process.gaussian import Gaussian
from backdrift.sample.ancestral import Bridge
from backdrift.sample.gauge import Gauge
from backdrift.sample.grids import DataScaled, Grid, Uniform
from backdrift.sample.guard import Guard
from backdrift.sample.rule import Known, Rule
from backdrift.sample.sde import Jump
from backdrift.sample.solver import Sampler, Solver
from backdrift.sample.variable import CLOCK, Place

SHARE = 0.55
LAST = 0.5
LONG = 0.25
ENOUGH = 5


@kind("gauge.ScaledFlow")
@dataclass(frozen=True)
class ScaledFlow(Gauge):
    """c = alpha unit + sigma and w = sigma / c: the flow gauge of data divided by `unit`."""

    unit: float = 1.0

    def __post_init__(self):
        _check_scale(self.unit)

    def scale(self, alpha, sigma):
        return alpha * self.unit + sigma

    def row(self, alpha, sigma):
        return -1 / self.unit, 1.0

    def clock(self, alpha, sigma):
        return sigma / self.scale(alpha, sigma)

    def ratio(self, clock):
        return self.unit * clock / (1 - clock)

    def rate(self, v):
        return 0.25 / np.cosh((v - np.log(self.unit)) / 2) ** 2


@kind("solver.AdamsFlow")
@dataclass(frozen=True)
class AdamsFlow(Solver):
    """Adams-Bashforth of three values, corrected by Adams-Moulton, in the straight path's clock (see above).

    scale: what the data are divided by, k above. guarded: whether a step that `Guard` does not pass holds D instead,
    which `budget` asks for below `ENOUGH` steps, where any polynomial is too long. Third order: the first step has one
    value.
    """

    scale: float = 0.5
    guarded: bool = False
    order = 3

    def __post_init__(self):
        _check_scale(self.scale)

    def budget(self, steps, schedule, start):
        return replace(self, guarded=steps < ENOUGH), steps

    def trace(self, trace, x, schedule, times):
        rule = Rule(ScaledFlow(self.scale), CLOCK, schedule)
        steps = list(itertools.pairwise(rule.place(t) for t in times))
        guard = Guard(trace, steps[0][0].pair, self.guarded)
        known: list[Known] = []
        taken = None
        for n, (at, to) in enumerate(steps):
            D = trace.evaluate(x, at.t)
            here = rule.known(x, D, at)
            if taken is not None:
                # the same step from the same state, written from where the first one led
                again = rule.step([here, *known], steps[n - 1][0], at)
                share = again.keep / taken.keep
                x = guard.first([share * x + again.rest - share * taken.rest, x], at.pair)
            known = [here, *known][: 3 if n < len(steps) - 1 else 2]
            taken, held = rule.step(_farther(known, at, to), at, to), rule.hold(D, at, to)
            if taken is None or not guard.passes(taken.of(x), to.pair):
                taken = held
            x = taken.of(x)
        return x


def _farther(known: list[Known], at: Place, to: Place) -> list[Known]:
    """The known values as a prediction from `at` to `to` sees them (see the module)."""
    stretch = 1 + ((to.w - at.w) / LONG) ** 2
    return [(at.u + stretch * (u - at.u), f) for u, f in known]


def data_scale(denoiser: Denoiser) -> float:
    """The data's standard deviation as the denoiser records it; 0.5, a picture's in [-1, 1], where it does not."""
    inner = inmost(denoiser)
    if isinstance(inner, ExactDenoiser):
        return inner.distribution.scales()[1] or 0.5
    return getattr(inner, "sigma_data", 0.5)


def clock_scale(denoiser: Denoiser) -> float:
    """What the default solver and grid divide the data by: k above."""
    return SHARE * data_scale(denoiser) * math.prod(denoiser.event_shape) ** 0.25


def inmost(denoiser: Denoiser) -> Denoiser:
    """The model behind guidance and other steering."""
    while isinstance(getattr(denoiser, "denoiser", None), Denoiser):
        denoiser = denoiser.denoiser
    return denoiser


def default_solver(denoiser: Denoiser) -> Sampler:
    """What `sample` uses when no solver is named."""
    if getattr(inmost(denoiser), "ends_path", False):
        return Jump()
    if "toward" in getattr(inmost(denoiser), "told", ()):
        return Jump(0.0)
    return AdamsFlow(clock_scale(denoiser)) if isinstance(denoiser.process, Gaussian) else Bridge()


def default_grid(denoiser: Denoiser) -> Grid:
    """What `sample` uses when no grid is named."""
    return DataScaled(clock_scale(denoiser), LAST) if isinstance(denoiser.process, Gaussian) else Uniform()


def _check_scale(scale: float) -> None:
    if not scale > 0:
        raise UserError(f"The data's scale must be positive, not {scale}.")
