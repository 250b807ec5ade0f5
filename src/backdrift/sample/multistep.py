"""Adams-Bashforth in a gauge: one multistep solver, of which most published ones are members.

Gauge, variable and order are three free choices of the step in rule.py. Known members: linear multistep and rho-AB are
(NOISE, CLOCK), DEIS's log-rho form and multistep DPM-Solver (NOISE, LOG), DEIS's t-AB (NOISE, TIME), DPM-Solver++ with
exact integrals (DATA, LOG), UniPC the same with a corrector, SA-Solver and the multistep SDE forms of DPM-Solver++
(StochasticGauge, LOG), ER-SDE (ExtendedGauge, RATIO).

* Warm-up: with p values the rule has a local error of h^(p + 1), so that its first step may have one of h^p, and is a
  Runge-Kutta step of p - 1 evaluations (`Rule.start`).
* Corrector: once D is known at s, the step to s is taken again with the polynomial through that value too: one order
  more and no further evaluation. Zhao et al. 2023, arXiv:2302.04867, Algorithm 1.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.sample.gauge import DATA, NOISE, TRIG, ExtendedGauge, Gauge, StochasticGauge
from backdrift.sample.guard import Guard
from backdrift.sample.rule import Known, Move, Rule
from backdrift.sample.solver import Solver
from backdrift.sample.trace import Linear, Tracer
from backdrift.sample.variable import CLOCK, LOG, RATIO, TIME, Place, Variable

WORTH = 8
"""A warm-up of k evaluations is made from 8 k evaluations on: below, the grid is too coarse for it to pay."""


@kind("solver.Multistep")
@dataclass(frozen=True)
class Multistep(Solver):
    """x_s = c_s (x_t / c_t + sum_i f_i int l_i(u) dw) + fresh noise in a stochastic gauge.

    order: the number of values in the polynomial, 1 to 4 (with the corrector 1 to 3). warmup: whether the first step is
    a Runge-Kutta step where the order needs it. guarded: whether a step that guard.py does not let pass takes a lower
    order. Where an end has an infinite clock, its step holds D constant.

    It converges with `order`, and one more with the corrector; in a stochastic gauge with 2 at most, measured in the
    law of the output, because fresh noise is not smooth; its strong order, along one Brownian path, is 1.
    """

    gauge: Gauge = TRIG
    variable: Variable = CLOCK
    order: int = 2
    corrector: bool = False
    warmup: bool = True
    guarded: bool = False

    def __post_init__(self):
        most = 3 if self.corrector else 4
        if not 1 <= self.order <= most:
            raise UserError(f"This multistep solver has order 1 to {most}, not {self.order}.")

    @property
    def convergence(self) -> int:
        smooth = self.order + self.corrector
        return min(smooth, 2) if self.gauge.stochastic else smooth

    @property
    def _extra(self) -> int:
        """Evaluations in the first step beyond one."""
        if self.gauge.stochastic or not self.warmup or self.order < 3:
            return 0
        return self.convergence - 2

    def budget(self, steps, schedule, start):
        solver, extra = replace(self, guarded=True), self._extra
        if extra == 0 or not self.variable.place(self.gauge, schedule, start).finite:
            return solver, steps
        if steps < WORTH * extra:
            return replace(solver, warmup=False), steps
        return solver, steps - extra

    def trace(self, trace, x, schedule, times):
        rule = Rule(self.gauge, self.variable, schedule)
        places = [rule.place(t) for t in times]
        guard = Guard(trace, places[0].pair, self.guarded)
        known: list[Known] = []
        taken: Move | None = None
        for n, (at, to) in enumerate(itertools.pairwise(places)):
            D = trace.evaluate(x, at.t)
            here = rule.known(x, D, at)
            if self.corrector and taken is not None:
                again = rule.step([here, *known[: self.order]], places[n - 1], at)
                if again is not None:
                    # the same step from the same state, written from where the first one led: its noise cancels
                    share = again.keep / taken.keep
                    x = guard.first([share * x + again.rest - share * taken.rest, x], at.pair)
            known = [here, *known][: self.order]
            if n == 0 and self._extra and at.finite and to.finite:
                x, stage = rule.start(trace, guard, x, D, at, to, 1 + self._extra)
                known = [stage, here]
                continue
            noise = self._noise(trace, at, to)
            moves = [rule.step(known[:count], at, to) for count in range(len(known), 1, -1)]
            moves = [move for move in moves if move is not None] + [rule.hold(D, at, to)]
            states = [move.of(x) if noise is None else move.of(x) + noise for move in moves]
            after = guard.first(states, to.pair)
            taken = next(move for move, state in zip(moves, states, strict=True) if state is after)
            x = after
        return x

    def _noise(self, trace: Tracer, at: Place, to: Place) -> Linear | None:
        if not self.gauge.stochastic:
            return None
        keep = self.gauge.keep(at.pair, to.pair)
        # also where the variance is 0, in the last step: the path then has as many intervals as the grid, and refines
        return math.sqrt(max(to.sigma**2 - (keep * at.sigma) ** 2, 0.0)) * trace.noise(at.t, to.t)


def LMS(order: int = 4) -> Multistep:
    """Linear multistep in sigma / alpha: k-diffusion's LMS, rho-AB of Zhang and Chen 2022, arXiv:2204.13902, Eq. 15."""
    return Multistep(NOISE, CLOCK, order)


def DEIS(order: int = 3) -> Multistep:
    """Exponential integrator with polynomials in t: t-AB-DEIS. Zhang and Chen 2022, arXiv:2204.13902, Eq. 14 and 15."""
    return Multistep(NOISE, TIME, order)


def LogDEIS(order: int = 3) -> Multistep:
    """DEIS with polynomials in log(sigma / alpha), which is also DPM-Solver's multistep form in noise prediction."""
    return Multistep(NOISE, LOG, order)


def ExactDPMpp(order: int = 2) -> Multistep:
    """DPM-Solver++ with its integrals exact; 2M replaces them by a midpoint rule. Lu et al. 2022, arXiv:2211.01095."""
    return Multistep(DATA, LOG, order)


def ERSDE(order: int = 2) -> Multistep:
    """Extended reverse-time SDE solver. Cui et al. 2023, arXiv:2309.06169, Eq. 17 to 20, in exact integrals.

    Order 3 takes the quadratic through its three values, where the paper's Taylor form uses a divided difference for
    the derivative.
    """
    return Multistep(ExtendedGauge(), RATIO, order)


def SASolver(order: int = 2, corrector: bool = True, tau: float = 1.0) -> Multistep:
    """Stochastic Adams with tau times the reverse SDE's noise. Xue et al. 2023, arXiv:2309.05019, Algorithm 1."""
    return Multistep(StochasticGauge(tau), LOG, order, corrector)
