"""One step of the gauge family: a polynomial through known directions, integrated exactly, and when to trust it.

In a gauge the reverse process reads d(x / c) = f dw (gauge.py). A step from t to s replaces f by the polynomial through
known values f_i at u_i, in a variable u (variable.py):

    x_s = c_s ( x_t / c_t + sum_i f_i int_{w_t}^{w_s} l_i(u) dw ),        l_i the Lagrange basis on the u_i.

With one value only, D = E[x_0 | x_t] is held constant, which is DDIM's step in every gauge. It is exact from alpha = 0
and to sigma = 0, where some clocks are infinite; an infinite u_i drops out of the polynomial, which is its limit.

A polynomial over too long a step invents what it extrapolates. Written out in x_1 and the means D_j (which lie in the
data's hull), a state is x = g x_1 + sum_j W_j D_j. The exact solution has positive W_j with sum alpha; `Guard` lets a
step pass only while sum |W_j| <= 3 alpha and the noise in g x_1 is what the time calls for, to a tenth. Holding D
constant always passes after a step that passed, so by induction no state leaves three times the hull. As steps get
shorter every step passes, so orders of convergence are untouched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from backdrift.sample.gauge import Gauge
from backdrift.sample.ode import slope
from backdrift.sample.trace import Linear, Tracer
from backdrift.sample.variable import Place, Variable
from backdrift.schedule import Schedule

HULL = 3.0
LEAK = 0.1

Known = tuple[float, Linear]  # (u_i, f_i)


def hold(x: Linear, D: Linear, at: tuple[float, float], to: tuple[float, float], keep: float | None = None) -> Linear:
    """keep x + (alpha_s - keep alpha_t) D: D held constant; keep = sigma_s / sigma_t is DDIM's step."""
    keep = to[1] / at[1] if keep is None else keep
    return keep * x + (to[0] - keep * at[0]) * D


@dataclass(frozen=True)
class Rule:
    """The steps of one gauge and variable on one schedule."""

    gauge: Gauge
    variable: Variable
    schedule: Schedule

    def place(self, t: float) -> Place:
        return self.variable.place(self.gauge, self.schedule, t)

    def known(self, x: Linear, D: Linear, at: Place) -> Known:
        """What a later step needs of the evaluation D at x."""
        return at.u, slope(self.gauge, x, D, at.pair)

    def weights(self, nodes: Sequence[float], at: Place, to: Place) -> list[float]:
        """int l_i(u) dw from `at` to `to`, one for each node."""
        u, dw = self.variable.measure(self.gauge, self.schedule, at, to)
        return [
            float(dw @ np.prod([(u - other) / (own - other) for j, other in enumerate(nodes) if j != i], axis=0))
            for i, own in enumerate(nodes)
        ]

    def step(self, x: Linear, known: Sequence[Known], at: Place, to: Place) -> Linear | None:
        """x_s by the polynomial through `known`; None where fewer than two values or an infinite clock rule it out."""
        known = [(u, f) for u, f in known if math.isfinite(u)]
        if len(known) < 2 or not (math.isfinite(at.w) and math.isfinite(to.w)):
            return None
        scale = self.gauge.scale(*to.pair)
        out = x * (scale / self.gauge.scale(*at.pair))
        for (_, f), weight in zip(known, self.weights([u for u, _ in known], at, to), strict=True):
            out = out + (scale * weight) * f
        return out

    def hold(self, x: Linear, D: Linear, at: Place, to: Place) -> Linear:
        return hold(x, D, at.pair, to.pair, self.gauge.keep(at.pair, to.pair))

    def radau(self, at: Place, to: Place) -> Place:
        """The place b within the step for which values at its start and at b integrate quadratics in u exactly."""
        u, dw = self.variable.measure(self.gauge, self.schedule, at, to)
        gap = u - at.u
        return self.variable.place_at(self.gauge, self.schedule, at.u + float(dw @ gap**2) / float(dw @ gap))


@dataclass(frozen=True)
class Guard:
    """Picks the first of several candidate states that stays within the data's hull (see the module's text).

    start: (alpha, sigma) at the first time. free: pass everything, as formulas are printed.
    """

    trace: Tracer
    start: tuple[float, float]
    free: bool = False
    stochastic: bool = False

    def passes(self, x: Linear, to: tuple[float, float]) -> bool:
        if self.free:
            return True
        weights = self.trace.weights(x)
        if np.abs(weights[1:]).sum() > HULL * to[0]:
            return False
        excess, allowed = weights[0] * self.start[1] - to[1], LEAK * math.hypot(*to)
        # fresh noise replaces some of x_1's, so that a stochastic solver has less of it
        return excess <= allowed and (self.stochastic or excess >= -allowed)

    def first(self, candidates: Iterable[Linear | None], to: tuple[float, float]) -> Linear:
        """The first that passes; the last one in any case, which is to hold D constant."""
        x = None
        for x in candidates:
            if x is not None and self.passes(x, to):
                return x
        return x
