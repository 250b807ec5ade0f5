"""When to trust a step: a bound that keeps every state near the data's hull, checked on the table before anything runs.

A polynomial over too long a step invents what it extrapolates: that is how solvers of higher order blow up at few
steps. Written out in x_1 and the means D_j, a state is x = g x_1 + sum_j W_j D_j. By Abel summation

    sum_j W_j D_j = C_n D_n - sum_{j<n} C_j (D_{j+1} - D_j),        C_j = W_0 + .. + W_j,

so that what counts is the running sums C_j, against the way that D travels from the data's mean to its answer. On the
exact solution they rise from 0 to alpha and g = sigma / sigma_1. `Guard` lets a step pass while |C_j| <= 1.1 alpha and
the noise, in g x_1 and freshly drawn, is right to 3 % of sqrt(alpha^2 + sigma^2). A step that does not pass is replaced
by one of lower order, in the end by DDIM's, which holds D constant: that one passes after a step that passed. As steps
get shorter every step passes, so orders of convergence are untouched.

`Solver.budget`, which knows how few the steps are, turns the guard on; `plan` alone compiles a formula as written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from backdrift.sample.gauge import Pair
from backdrift.sample.trace import Linear, Tracer

REACH = 1.1
LEAK = 0.03


@dataclass(frozen=True)
class Guard:
    """Picks the first of several candidate states that passes (see above).

    start: (alpha, sigma) at the first time. active: False passes everything, as formulas are printed.
    """

    trace: Tracer
    start: Pair
    active: bool = True

    def passes(self, x: Linear, to: Pair) -> bool:
        if not self.active:
            return True
        weights, noises = self.trace.written_out(x)
        if not np.abs(np.cumsum(weights[1:])).max() <= REACH * to[0]:
            return False
        noise = math.sqrt((weights[0] * self.start[1]) ** 2 + float(noises @ noises))
        return abs(noise - to[1]) <= LEAK * math.hypot(*to)

    def first(self, candidates: Iterable[Linear], to: Pair) -> Linear:
        """The first that passes; the last one in any case, which is to hold D constant."""
        for x in candidates:
            if self.passes(x, to):
                break
        return x
