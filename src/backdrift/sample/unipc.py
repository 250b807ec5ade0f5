"""UniPC: a predictor and a corrector that share their evaluations. Zhao et al. 2023, arXiv:2302.04867.

The paper solves for weights that match the Taylor terms of the data-prediction integral up to its order. That system
has one solution, the exact integral of the polynomial through the same values: so UniPC is `Multistep` in the data
gauge and log(sigma / alpha) with the corrector, and its free function B(h) cancels. It does not cancel where the
printed algorithm replaces the solution by 1/2, in the predictor of order 2 and the corrector of order 1;
`PublishedUniPC` reproduces that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.sample.gauge import DATA, pairs, straight
from backdrift.sample.multistep import Multistep
from backdrift.sample.solver import Solver
from backdrift.sample.trace import Linear
from backdrift.sample.variable import LOG


class Scale(ABC):
    """B(h), any function with B(h) = O(h)."""

    @abstractmethod
    def at(self, h: float) -> float:
        """B."""


@kind("scale.BH1")
@dataclass(frozen=True)
class _BH1(Scale):
    def at(self, h):
        return -h


@kind("scale.BH2")
@dataclass(frozen=True)
class _BH2(Scale):
    def at(self, h):
        return math.expm1(-h)


BH1, BH2 = _BH1(), _BH2()


def UniPC(order: int = 3) -> Multistep:
    """UniPC of order 1 to 3 with its corrector; it converges with order + 1."""
    return Multistep(DATA, LOG, order, corrector=True)


@kind("solver.PublishedUniPC")
@dataclass(frozen=True)
class PublishedUniPC(Solver):
    """UniPC as printed (Algorithms 1 to 4, data prediction), with the lower orders in the first and last steps.

    Its start is of first order with a corrector, so it converges with order 2 at order 1 and with 3 beyond. Towards
    sigma = 0 the order falls to 1 over the last steps, as in the paper's code.
    """

    order: int = 3
    scale: Scale = BH2

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise UserError(f"UniPC has order 1, 2 or 3, not {self.order}.")

    @property
    def convergence(self) -> int:
        return min(self.order + 1, 3)

    def trace(self, trace, x, schedule, times):
        at = pairs(schedule, times)
        lam = [float(schedule.logsnr(t)) / 2 for t in times]
        count = len(times) - 1
        known: list[tuple[float, Linear]] = []
        before = x
        for n in range(count):
            D = trace.evaluate(x, times[n])
            if n > 0 and math.isfinite(lam[n] - lam[n - 1]):
                # the corrector, with the order that the step to here had
                order = self._order_of(n - 1, count, at)
                x = self._step(before, known[:order], (lam[n], D), at[n - 1], at[n], lam[n] - lam[n - 1])
            known = [(lam[n], D), *known][:3]
            before = x
            if math.isfinite(lam[n + 1] - lam[n]):
                order = self._order_of(n, count, at)
                x = self._step(before, known[:order], None, at[n], at[n + 1], lam[n + 1] - lam[n])
            else:
                x = straight(before, D, at[n], at[n + 1])
        return x

    def _order_of(self, n: int, count: int, at: list[tuple[float, float]]) -> int:
        left = count - n if at[-1][1] == 0 else self.order
        return min(self.order, n + 1, left)

    def _step(
        self,
        x: Linear,
        known: list[tuple[float, Linear]],
        ahead: tuple[float, Linear] | None,
        at: tuple[float, float],
        to: tuple[float, float],
        h: float,
    ) -> Linear:
        """The predictor, or the corrector where the value ahead is given. Algorithms 5 and 6 of the paper."""
        (lam, D), earlier = known[0], [node for node in known[1:] if math.isfinite(node[0])]
        nodes = [((other - lam) / h, value - D) for other, value in earlier]
        if ahead is not None:
            nodes.append((1.0, ahead[1] - D))
        out = straight(x, D, at, to)
        if not nodes:
            return out
        B = self.scale.at(h)
        half = len(nodes) == 1  # the predictor of order 2 and the corrector of order 1
        for (r, gap), rho in zip(nodes, [0.5] if half else self._weights([r for r, _ in nodes], h, B), strict=True):
            out = out - (to[0] * B * rho / r) * gap
        return out

    def _weights(self, r: list[float], h: float, B: float) -> list[float]:
        """rho with sum_j rho_j r_j^(i - 1) = i! phi_(i + 1)(-h) (-h) / B, i = 1 .. len(r)."""
        # phi_1 = expm1(-h) / -h and i! phi_(i + 1) = (i! phi_i - 1) / -h in the paper's recursion
        right, phi, factorial = [], math.expm1(-h) / -h - 1, 1
        for i in range(1, len(r) + 1):
            right.append(phi * factorial / B)
            phi = phi / -h - 1 / (factorial * (i + 1))
            factorial *= i + 1
        powers = np.array([[x ** (i - 1) for x in r] for i in range(1, len(r) + 1)])
        return np.linalg.solve(powers, np.array(right)).tolist()
