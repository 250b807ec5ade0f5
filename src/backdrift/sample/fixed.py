"""Adams-Bashforth with fixed coefficients on the predicted noise: PLMS and iPNDM.

    x_s = (alpha_s / alpha_t) x_t + (sigma_s - sigma_t alpha_s / alpha_t) eps_bar,

with eps_bar = sum_i b_i eps_i in the coefficients of equal steps. They are exact for steps that are equal in
sigma / alpha; on any other grid the method is of order 2, whatever the number of values, because the weight d(sigma /
alpha) varies along the step. `LMS` and `DEIS` of multistep.py integrate with that weight and keep the order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.sample.gauge import pairs, straight
from backdrift.sample.guard import Guard
from backdrift.sample.solver import Solver
from backdrift.sample.trace import Linear

ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def implied_noise(x: Linear, D: Linear, at: tuple[float, float]) -> Linear:
    """eps = (x - alpha D) / sigma."""
    return (1 / at[1]) * x - (at[0] / at[1]) * D


@kind("solver.IPNDM")
@dataclass(frozen=True)
class IPNDM(Solver):
    """Improved PNDM: eps_bar from up to `values` last eps, fewer in the first steps.

    Zhang and Chen 2022, arXiv:2204.13902, Eq. 35 to 38 (their iPNDM; values = 4 there). It converges with order 2 for
    two values or more. guarded: see guard.py.
    """

    values: int = 4
    guarded: bool = False

    def __post_init__(self):
        if self.values not in (1, 2, 3, 4):
            raise UserError(f"IPNDM uses 1 to 4 values, not {self.values}.")

    @property
    def order(self) -> int:
        return min(self.values, 2)

    def budget(self, steps, schedule, start):
        return replace(self, guarded=True), steps

    def trace(self, trace, x, schedule, times):
        at = pairs(schedule, times)
        guard = Guard(trace, at[0], self.guarded)
        known: list[Linear] = []
        for n in range(len(times) - 1):
            D = trace.evaluate(x, times[n])
            known = [implied_noise(x, D, at[n]), *known][: self.values]
            x = guard.first(candidates(x, D, known, at[n], at[n + 1]), at[n + 1])
        return x


@kind("solver.PLMS")
@dataclass(frozen=True)
class PLMS(Solver):
    """Pseudo linear multistep (PNDM). Liu et al. 2022, arXiv:2202.09778, Eq. 9 and 12.

    The first step is taken again with the mean of the two eps at its ends, which costs one evaluation. It converges
    with order 2 (see above), so the paper's Runge-Kutta start of twelve evaluations would buy nothing and is left out.
    guarded: see guard.py. warmup: whether the first step is taken again.
    """

    guarded: bool = False
    warmup: bool = True
    order = 2

    def budget(self, steps, schedule, start):
        warm = self.warmup and steps > 2
        return replace(self, guarded=True, warmup=warm), steps - warm

    def trace(self, trace, x, schedule, times):
        at = pairs(schedule, times)
        guard = Guard(trace, at[0], self.guarded)
        known: list[Linear] = []
        for n in range(len(times) - 1):
            D = trace.evaluate(x, times[n])
            known = [implied_noise(x, D, at[n]), *known][:4]
            ahead = guard.first(candidates(x, D, known, at[n], at[n + 1]), at[n + 1])
            if n == 0 and self.warmup and at[1][1] > 0:
                D_ahead = trace.evaluate(ahead, times[1])
                mean = 0.5 * (known[0] + implied_noise(ahead, D_ahead, at[1]))
                ahead = guard.first([carry(x, D, mean, at[0], at[1]), ahead], at[1])
            x = ahead
        return x


def carry(x: Linear, D: Linear, eps: Linear, at: tuple[float, float], to: tuple[float, float]) -> Linear:
    """x_s for this eps; from alpha = 0, where eps moves x_s by nothing finite, D held constant."""
    if not at[0]:
        return straight(x, D, at, to)
    keep = to[0] / at[0]
    return keep * x + (to[1] - keep * at[1]) * eps


def candidates(
    x: Linear, D: Linear, known: list[Linear], at: tuple[float, float], to: tuple[float, float]
) -> list[Linear]:
    """x_s by all the known eps, newest first, then by fewer, last by one."""
    states = [straight(x, D, at, to)]
    for count in range(2, len(known) + 1):
        eps = known[0] * ADAMS[count - 1][0]
        for b, earlier in zip(ADAMS[count - 1][1:], known[1:count], strict=True):
            eps = eps + b * earlier
        states.insert(0, carry(x, D, eps, at, to))
    return states
