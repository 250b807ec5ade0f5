"""One step of the gauge family: a polynomial through known directions, integrated exactly.

In a gauge the reverse process reads d(x / c) = f dw (gauge.py). A step from t to s replaces f by the polynomial through
known values f_i at u_i, in a variable u (variable.py):

    x_s = c_s ( x_t / c_t + sum_i f_i int_{w_t}^{w_s} l_i(u) dw ),        l_i the Lagrange basis on the u_i.

With one value only, D = E[x_0 | x_t] is held constant, which is DDIM's step in every gauge. It is exact from alpha = 0
and to sigma = 0, where some clocks are infinite; an infinite u_i drops out of the polynomial, which is its limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from backdrift.sample.gauge import Gauge, slope
from backdrift.sample.guard import Guard
from backdrift.sample.trace import Linear, Tracer
from backdrift.sample.variable import Place, Variable
from backdrift.schedule import Schedule

Known = tuple[float, Linear]  # (u_i, f_i)


class Move(NamedTuple):
    """x_s = keep x_t + rest."""

    keep: float
    rest: Linear

    def of(self, x: Linear) -> Linear:
        return self.keep * x + self.rest


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

    def step(self, known: Sequence[Known], at: Place, to: Place) -> Move | None:
        """By the polynomial through `known`; None where fewer than two values or an infinite clock rule it out."""
        known = [(u, f) for u, f in known if math.isfinite(u)]
        if len(known) < 2 or not (math.isfinite(at.w) and math.isfinite(to.w)):
            return None
        scale, rest = self.gauge.scale(*to.pair), Linear({})
        for (_, f), weight in zip(known, self.weights([u for u, _ in known], at, to), strict=True):
            rest = rest + (scale * weight) * f
        return Move(scale / self.gauge.scale(*at.pair), rest)

    def hold(self, D: Linear, at: Place, to: Place) -> Move:
        """By D held constant."""
        keep = self.gauge.keep(at.pair, to.pair)
        return Move(keep, (to.alpha - keep * at.alpha) * D)

    def start(
        self, trace: Tracer, guard: Guard, x: Linear, D: Linear, at: Place, to: Place, evaluations: int
    ) -> tuple[Linear, Known]:
        """A Runge-Kutta step of 2 or 3 evaluations, D included, with a local error of one order more.

        It integrates the line through the first value and a last stage. With two evaluations that stage lies half way
        in u. With three it lies at the Radau node of the measure dw, for which the line integrates quadratics exactly,
        and is itself reached through a stage half way there. Returns x_s and the last stage's value.
        """
        here = self.known(x, D, at)
        target = (at.u + to.u) / 2 if evaluations == 2 else self._radau(at, to)
        stage = self.variable.place_at(self.gauge, self.schedule, target)
        x_stage = self.hold(D, at, stage).of(x)
        if evaluations == 3:
            half = self.variable.place_at(self.gauge, self.schedule, (at.u + stage.u) / 2)
            x_half = self.hold(D, at, half).of(x)
            D_half = trace.evaluate(x_half, half.t)
            higher = self.step([self.known(x_half, D_half, half), here], at, stage)
            states = [] if higher is None else [higher.of(x)]
            x_stage = guard.first([*states, self.hold(D_half, half, stage).of(x_half)], stage.pair)
        D_stage = trace.evaluate(x_stage, stage.t)
        there = self.known(x_stage, D_stage, stage)
        higher = self.step([there, here], at, to)
        states = [] if higher is None else [higher.of(x)]
        return guard.first([*states, self.hold(D_stage, stage, to).of(x_stage)], to.pair), there

    def _radau(self, at: Place, to: Place) -> float:
        u, dw = self.variable.measure(self.gauge, self.schedule, at, to)
        gap = u - at.u
        return at.u + float(dw @ gap**2) / float(dw @ gap)
