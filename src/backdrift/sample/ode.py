"""Deterministic solvers of the probability-flow ODE, written as their papers write them.

In every step x is the state at t, D = E[x_0 | x], and eps = (x - alpha D) / sigma the noise that D implies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.sample.gauge import FLOW, Gauge
from backdrift.sample.solver import Solver
from backdrift.sample.trace import Linear, Tracer
from backdrift.schedule import Schedule


def pairs(schedule: Schedule, times: list[float]) -> list[tuple[float, float]]:
    """(alpha, sigma) as floats at each time."""
    alpha, sigma = schedule.alpha_sigma(torch.tensor(times, dtype=torch.float64))
    return list(zip(alpha.tolist(), sigma.tolist(), strict=True))


def straight(x: Linear, D: Linear, at: tuple[float, float], to: tuple[float, float]) -> Linear:
    """alpha_s D + sigma_s eps: DDIM's step, exact if D were constant.  Song et al. 2021, arXiv:2010.02502, Eq. 12."""
    (alpha, sigma), (alpha_s, sigma_s) = at, to
    ratio = sigma_s / sigma
    return ratio * x + (alpha_s - ratio * alpha) * D


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


def slope(gauge: Gauge, x: Linear, D: Linear, at: tuple[float, float]) -> Linear:
    """f, the direction of x / c in the gauge's clock."""
    p, q = gauge.direction(*at)
    return p * x + q * D


def advance(gauge: Gauge, x: Linear, D: Linear, at: tuple[float, float], to: tuple[float, float]) -> Linear:
    """x / c after one Euler step of the gauge's clock."""
    span = gauge.clock(*to) - gauge.clock(*at)
    return x / gauge.scale(*at) + span * slope(gauge, x, D, at)


@kind("solver.Heun")
@dataclass(frozen=True)
class Heun(Solver):
    """The trapezoidal rule with an Euler predictor, two evaluations a step, in a gauge.

    In the noise gauge it is Karras et al. 2022, arXiv:2206.00364, Algorithm 1. A step that ends at sigma = 0, where the
    direction cannot be evaluated, is an Euler step. plain: how many of the last steps are Euler steps in any case.
    """

    gauge: Gauge = field(default=FLOW)
    plain: int = 0
    order = 2

    def budget(self, steps, schedule, start):
        # the last step to sigma = 0 is plain anyway; one more plain step makes up an odd number of evaluations
        single = int(schedule.alpha_sigma(0.0)[1] == 0)
        odd = (steps - single) % 2
        return replace(self, plain=single + odd), (steps + single + odd) // 2

    def trace(self, trace, x, schedule, times):
        at = pairs(schedule, times)
        count = len(times) - 1
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
            x = scale * (x / self.gauge.scale(*at[n]) + span * mean_slope)
        return x


@kind("solver.DPMpp")
@dataclass(frozen=True)
class DPMpp(Solver):
    """DPM-Solver++ multistep in data prediction, order 1 to 3. Lu et al. 2022, arXiv:2211.01095.

    With lambda = log(alpha / sigma), h = lambda_s - lambda_t:  x_s = (sigma_s / sigma_t) x_t - alpha_s expm1(-h) Dbar,
    where Dbar extrapolates D over the step. Order 2 is the published 2M (Algorithm 2). Order 3 integrates the
    quadratic through the last three D exactly (the published 3M halves its last coefficient and is of order 2); its
    first step is a two-stage step, one evaluation more, without which the start alone would cost an order.

    Where an end has infinite log-SNR the step there is of first order, Dbar = D: from alpha = 0 that is the exact
    limit, to sigma = 0 it returns D itself.
    """

    order: int = 2

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise UserError(f"DPMpp has order 1, 2 or 3, not {self.order}.")

    def budget(self, steps, schedule, start):
        if self.order < 3 or not math.isfinite(schedule.logsnr(start)):
            return self, steps
        # the two-stage first step takes one evaluation more than there are intervals
        return (self, steps - 1) if steps > 2 else (DPMpp(steps), steps)

    def trace(self, trace: Tracer, x: Linear, schedule: Schedule, times: list[float]) -> Linear:
        at = pairs(schedule, times)
        lam = [float(schedule.logsnr(t)) / 2 for t in times]
        known: list[tuple[float, Linear]] = []
        for n in range(len(times) - 1):
            D = trace.evaluate(x, times[n])
            known.insert(0, (lam[n], D))
            finite = math.isfinite(lam[n + 1] - lam[n])
            if self.order == 3 and n == 0 and finite:
                # a midpoint stage (Lu et al. 2022, Algorithm 1 with r = 1/2) lifts the first step to order 2
                mid = (lam[0] + lam[1]) / 2
                t_mid = float(schedule.time(2 * mid))
                (at_mid,) = pairs(schedule, [t_mid])
                D_mid = trace.evaluate(straight(x, D, at[0], at_mid), t_mid)
                average = D_mid
            else:
                average = _average(known[: self.order], lam[n + 1]) if finite else D
            x = straight(x, average, at[n], at[n + 1])
        return x


def _average(known: list[tuple[float, Linear]], target: float) -> Linear:
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
    return D0 + moment_1 * first + (moment_2 - u1 * moment_1) * second
