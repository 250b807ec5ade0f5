"""Deterministic solvers of the probability-flow ODE, written as their papers write them.

In every step x is the state at t, D = E[x_0 | x], and eps = (x - alpha D) / sigma the noise that D implies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.sample.gauge import FLOW, Gauge, advance, pairs, slope, straight
from backdrift.sample.guard import Guard
from backdrift.sample.solver import Solver
from backdrift.sample.trace import Linear, Tracer
from backdrift.schedule import Schedule


@kind("solver.Euler")
@dataclass(frozen=True)
class Euler(Solver):
    """x_s / c_s = x_t / c_t + (w_s - w_t) f in a gauge. In the noise, data and flow gauges this is DDIM."""

    gauge: Gauge = field(default=FLOW)
    order = 1

    def trace(self, trace, x, schedule, times):
        at = pairs(schedule, times)
        for n in range(len(times) - 1):
            D = trace.evaluate(x, times[n])
            x = self.gauge.scale(*at[n + 1]) * advance(self.gauge, x, D, at[n], at[n + 1])
        return x


@kind("solver.Heun")
@dataclass(frozen=True)
class Heun(Solver):
    """The trapezoidal rule with an Euler predictor, two evaluations a step, in a gauge.

    In the noise gauge it is Karras et al. 2022, arXiv:2206.00364, Algorithm 1. A step that ends at sigma = 0, where the
    direction cannot be evaluated, is an Euler step. plain: how many of the last steps are Euler steps in any case (one
    more where a number of evaluations asks for it). guarded: whether a step that guard.py does not let pass is one too.
    """

    gauge: Gauge = field(default=FLOW)
    plain: int = 0
    guarded: bool = False
    order = 2

    def budget(self, steps, schedule, start):
        # the last step to sigma = 0 is plain anyway; one more plain step makes up an odd number of evaluations
        single = int(schedule.alpha_sigma(0.0)[1] == 0)
        least = min(max(self.plain, single), steps)
        plain = least + (steps - least) % 2
        return replace(self, plain=plain, guarded=True), (steps + plain) // 2

    def trace(self, trace, x, schedule, times):
        at = pairs(schedule, times)
        count = len(times) - 1
        guard = Guard(trace, at[0], self.guarded)
        for n in range(count):
            D = trace.evaluate(x, times[n])
            scale = self.gauge.scale(*at[n + 1])
            ahead = scale * advance(self.gauge, x, D, at[n], at[n + 1])
            if at[n + 1][1] == 0 or n >= count - self.plain:
                x = ahead
                continue
            span = self.gauge.clock(*at[n + 1]) - self.gauge.clock(*at[n])
            D_ahead = trace.evaluate(ahead, times[n + 1])
            mean_slope = 0.5 * (slope(self.gauge, x, D, at[n]) + slope(self.gauge, ahead, D_ahead, at[n + 1]))
            x = guard.first([scale * (x / self.gauge.scale(*at[n]) + span * mean_slope), ahead], at[n + 1])
        return x


@kind("solver.DPMpp")
@dataclass(frozen=True)
class DPMpp(Solver):
    """DPM-Solver++ multistep in data prediction, order 1 to 3. Lu et al. 2022, arXiv:2211.01095.

    With lambda = log(alpha / sigma), h = lambda_s - lambda_t:  x_s = (sigma_s / sigma_t) x_t - alpha_s expm1(-h) Dbar,
    where Dbar extrapolates D over the step. Order 2 is the published 2M (Algorithm 2). Order 3 integrates the
    quadratic through the last three D exactly; its first step is a two-stage step, one evaluation more, without which
    the start alone would cost an order.

    published: 3M as printed, without the two-stage start and with half the last coefficient: of order 2. guarded:
    whether a step that guard.py does not let pass takes a lower order.

    Where an end has infinite log-SNR the step there is of first order, Dbar = D: from alpha = 0 that is the exact
    limit, to sigma = 0 it returns D itself.
    """

    order: int = 2
    published: bool = False
    guarded: bool = False

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise UserError(f"DPMpp has order 1, 2 or 3, not {self.order}.")

    @property
    def convergence(self) -> int:
        return min(self.order, 2) if self.published else self.order

    def budget(self, steps, schedule, start):
        guarded = replace(self, guarded=not self.published)
        if self.order < 3 or self.published or not math.isfinite(schedule.logsnr(start)):
            return guarded, steps
        # the two-stage first step takes one evaluation more than there are intervals
        return (guarded, steps - 1) if steps > 2 else (replace(guarded, order=steps), steps)

    def trace(self, trace: Tracer, x: Linear, schedule: Schedule, times: list[float]) -> Linear:
        at = pairs(schedule, times)
        lam = [float(schedule.logsnr(t)) / 2 for t in times]
        guard = Guard(trace, at[0], self.guarded)
        known: list[tuple[float, Linear]] = []
        for n in range(len(times) - 1):
            D = trace.evaluate(x, times[n])
            known = [(lam[n], D), *known][: self.order]
            if not math.isfinite(lam[n + 1] - lam[n]):
                x = straight(x, D, at[n], at[n + 1])
                continue
            if self.order == 3 and n == 0 and not self.published:
                # a midpoint stage (Lu et al. 2022, Algorithm 1 with r = 1/2) lifts the first step to order 2
                t_mid = float(schedule.time(lam[0] + lam[1]))
                (at_mid,) = pairs(schedule, [t_mid])
                x = straight(x, trace.evaluate(straight(x, D, at[0], at_mid), t_mid), at[0], at[1])
                continue
            averages = [_average(known[:k], lam[n + 1], self.published) for k in range(len(known), 0, -1)]
            x = guard.first((straight(x, average, at[n], at[n + 1]) for average in averages), at[n + 1])
        return x


def _average(known: list[tuple[float, Linear]], target: float, published: bool) -> Linear:
    """Dbar: the mean of D over the step, weighted by e^lambda, from the values at (lambda_0, D_0), newest first.

    Differences to nodes at lambda = -inf (the pure-noise end) vanish.
    """
    h = target - known[0][0]
    nodes = [(lam - known[0][0], D) for lam, D in known if math.isfinite(lam)]
    phi_1 = -math.expm1(-h)
    if len(nodes) == 1 or h == 0:
        return known[0][1]
    D0 = nodes[0][1]
    if len(nodes) == 2:
        # 2M's midpoint rule: the slope times h / 2
        return D0 + (h / 2 / -nodes[1][0]) * (D0 - nodes[1][1])
    # Newton's form through three nodes, integrated exactly: moments m_k of u^k e^(u - h) over [0, h], divided by phi_1
    moment_1 = (h - phi_1) / phi_1
    moment_2 = (h * h - 2 * (h - phi_1)) / phi_1
    (u1, D1), (u2, D2) = nodes[1], nodes[2]
    first = (D0 - D1) / -u1
    second = (first - (D1 - D2) / (u1 - u2)) / -u2
    if published:
        return D0 + moment_1 * (first - u1 * second) + (moment_2 / 2) * second
    return D0 + moment_1 * first + (moment_2 - u1 * moment_1) * second
