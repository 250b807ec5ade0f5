"""Singlestep solvers: Runge-Kutta methods in the log-SNR, each step on its own, with one to three evaluations.

With lambda = log(alpha / sigma) and h = lambda_s - lambda_t, a stage lies at a fraction of h. Where an end has infinite
log-SNR the step there holds D constant, which needs one evaluation. A budget that does not divide by the order is made
up of steps of one order less; those have a local error of h^order, so the order is kept.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass, replace

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.sample.gauge import DATA, Gauge, pairs, straight
from backdrift.sample.guard import Guard
from backdrift.sample.rule import Rule
from backdrift.sample.solver import Solver, check_evaluations
from backdrift.sample.trace import Linear, Tracer
from backdrift.sample.variable import LOG
from backdrift.schedule import Schedule


def split(steps: int, order: int) -> tuple[int, ...]:
    """`steps` evaluations as steps of `order` evaluations, the rest made up of steps of one less where possible."""
    full = next((k for k in range(steps // order, -1, -1) if (steps - k * order) % max(order - 1, 1) == 0), 0)
    rest = steps - full * order
    fewer = max(order - 1, 1)
    if order == 3 and steps == 1:
        return (1,)
    return (order,) * full + (fewer,) * (rest // fewer)


@dataclass(frozen=True)
class Singlestep(Solver):
    """Steps that share nothing. stages: the evaluations of each step, from the first; () means `order` in each.

    guarded: whether a step that guard.py does not let pass goes on from its last stage by holding D constant.
    """

    order: int = 2
    stages: tuple[int, ...] = ()
    guarded: bool = False

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise UserError(f"{type(self).__name__} has order 1, 2 or 3, not {self.order}.")

    @abstractmethod
    def step(self, trace: Tracer, guard: Guard, schedule: Schedule, x: Linear, D: Linear, t: float, s: float) -> Linear:
        """x_s from x = x_t and D there by `order` evaluations in all, where both log-SNRs are finite."""

    def single(self, trace: Tracer, schedule: Schedule, x: Linear, D: Linear, t: float, s: float) -> Linear:
        """x_s by the one evaluation D: the only step possible where a log-SNR is infinite."""
        return straight(x, D, *pairs(schedule, [t, s]))

    def budget(self, steps, schedule, start):
        first, last = (int(not math.isfinite(schedule.logsnr(t))) for t in (start, 0.0))
        if self.stages:
            inner = self.stages[first : len(self.stages) - last]
            check_evaluations(self, (first, *inner, last), steps)
            return replace(self, guarded=True), len(self.stages)
        inner = steps - first - last
        stages = (1,) * steps if inner < 1 else (1,) * first + split(inner, self.order) + (1,) * last
        return replace(self, stages=stages, guarded=True), len(stages)

    def trace(self, trace, x, schedule, times):
        stages = self.stages or (self.order,) * (len(times) - 1)
        if len(stages) != len(times) - 1:
            raise UserError(f"{type(self).__name__} was given {len(stages)} steps' stages for {len(times) - 1} steps.")
        guard = Guard(trace, *pairs(schedule, times[:1]), self.guarded)
        for count, (t, s) in zip(stages, itertools.pairwise(times), strict=True):
            D = trace.evaluate(x, t)
            finite = math.isfinite(schedule.logsnr(t)) and math.isfinite(schedule.logsnr(s))
            if count == 1 or not finite:
                x = self.single(trace, schedule, x, D, t, s)
            else:
                x = replace(self, order=count, stages=()).step(trace, guard, schedule, x, D, t, s)
        return x


def between(schedule: Schedule, t: float, s: float, part: float) -> float:
    """The time at the fraction `part` of the way from t to s in log-SNR."""
    first, last = float(schedule.logsnr(t)), float(schedule.logsnr(s))
    return float(schedule.time(first + part * (last - first)))


@kind("solver.DPMSolver")
@dataclass(frozen=True)
class DPMSolver(Singlestep):
    """DPM-Solver of order 1 to 3 in noise prediction. Lu et al. 2022, arXiv:2206.00927, Algorithms 1 and 2.

    Order 2, with a stage at h / 2:  x_s = (alpha_s / alpha_t) x_t - sigma_s (e^h - 1) eps_m.  Order 3 has stages at
    h / 3 and 2h / 3; the second and the result add sigma ((e^h - 1) / h - 1) times a difference of eps to that.
    """

    def step(self, trace, guard, schedule, x, D, t, s):
        at, to = pairs(schedule, [t, s])
        eps = _eps(x, D, at)
        r = 1 / 2 if self.order == 2 else 1 / 3
        time = between(schedule, t, s, r)
        (near,) = pairs(schedule, [time])
        x_near = _carry(x, eps, at, near)
        D_near = trace.evaluate(x_near, time)
        eps_near = _eps(x_near, D_near, near)
        if self.order == 2:
            return guard.first([_carry(x, eps_near, at, to), straight(x_near, D_near, near, to)], to)
        time = between(schedule, t, s, 2 / 3)
        (far,) = pairs(schedule, [time])
        h = math.log(to[0] / to[1]) - math.log(at[0] / at[1])
        bend = 2 * far[1] * (math.expm1(2 * h / 3) / (2 * h / 3) - 1)
        x_far = _carry(x, eps, at, far) - bend * (eps_near - eps)
        x_far = guard.first([x_far, straight(x_near, D_near, near, far)], far)
        D_far = trace.evaluate(x_far, time)
        bend = 1.5 * to[1] * (math.expm1(h) / h - 1)
        out = _carry(x, eps, at, to) - bend * (_eps(x_far, D_far, far) - eps)
        return guard.first([out, straight(x_far, D_far, far, to)], to)


@kind("solver.DPMpp2S")
@dataclass(frozen=True)
class DPMpp2S(Singlestep):
    """DPM-Solver++(2S), r = 1/2: x_s = (sigma_s / sigma_t) x_t - alpha_s expm1(-h) D_m, D_m at h / 2.

    Lu et al. 2022, arXiv:2211.01095, Algorithm 1.
    """

    def __post_init__(self):
        if self.order != 2:
            raise UserError(f"DPMpp2S has order 2, not {self.order}; DPMSolver and ExponentialRK also have order 3.")

    def step(self, trace, guard, schedule, x, D, t, s):
        time = between(schedule, t, s, 0.5)
        at, mid, to = pairs(schedule, [t, time, s])
        # D_m in place of D: a positive combination, which needs no guard
        return straight(x, trace.evaluate(straight(x, D, at, mid), time), at, to)


@kind("solver.ExponentialRK")
@dataclass(frozen=True)
class ExponentialRK(Singlestep):
    """Exponential Runge-Kutta methods with exact weights, order 2 or 3, in a gauge and log(sigma / alpha).

    Order 2 in the data gauge has a stage at h / 2 and the linear interpolant through both values: with
    phi_1 = (1 - e^-h) / h and phi_2 = (1 - phi_1) / h, weights b_2 = 2 phi_2 and b_1 = phi_1 - b_2 (Hochbruck and
    Ostermann 2005, Eq. 5.4, also called RES-2S; Zhang et al. 2023, arXiv:2308.02157). Order 3 is `Rule.start`'s scheme.
    """

    gauge: Gauge = DATA

    def step(self, trace, guard, schedule, x, D, t, s):
        rule = Rule(self.gauge, LOG, schedule)
        at, to = rule.place(t), rule.place(s)
        x, _ = rule.start(trace, guard, x, D, at, to, self.order)
        return x


def _eps(x: Linear, D: Linear, at: tuple[float, float]) -> Linear:
    return (1 / at[1]) * x - (at[0] / at[1]) * D


def _carry(x: Linear, eps: Linear, at: tuple[float, float], to: tuple[float, float]) -> Linear:
    """(alpha_s / alpha_t) x_t - sigma_s (e^h - 1) eps."""
    keep = to[0] / at[0]
    return keep * x + (to[1] - keep * at[1]) * eps
