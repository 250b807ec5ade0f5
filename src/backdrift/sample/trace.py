"""Writing a solver as its paper writes it, on symbols; the table of a `Plan` falls out.

D = trace.evaluate(x, t)                         # one call of the denoiser, E[x_0 | x_t]
x = a * x + b * D + c * trace.noise(t, s)        # any linear combination
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from backdrift.sample.plan import Plan
from backdrift.schedule import Schedule


class Linear:
    """A linear combination of the symbols of a trace: ("x", 0), ("y", n), ("D", n), ("xi", m)."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[tuple[str, int], float]):
        self.terms = dict(terms)

    def __add__(self, other: Linear) -> Linear:
        terms = dict(self.terms)
        for symbol, value in other.terms.items():
            terms[symbol] = terms.get(symbol, 0.0) + value
        return Linear(terms)

    def __mul__(self, factor: float) -> Linear:
        return Linear({symbol: value * float(factor) for symbol, value in self.terms.items()})

    __rmul__ = __mul__

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1.0

    def __truediv__(self, factor: float) -> Linear:
        # a division by zero becomes an entry that the plan refuses, with its row
        return self * (1.0 / float(factor) if factor else math.inf)


class Tracer:
    """Records an algorithm as a plan. `start` is the state at the first time, the symbol x_1."""

    def __init__(self):
        self.start = Linear({("x", 0): 1.0})
        self._rows: list[dict] = []
        self._times: list[float] = []
        self._toward: list[float | None] = []
        self._intervals: list[tuple[float, float]] = []
        self._written: list[tuple[np.ndarray, np.ndarray]] = []

    def evaluate(self, x: Linear, t: float, toward: float | None = None) -> Linear:
        """D = E[x_0 | x at time t]. From here on `x` stands for the state y_n, so that rows stay sparse.

        toward: of a flow map, the time that D is to lead to.
        """
        n = len(self._times)
        self._written.append(self.written_out(x))
        self._rows.append(x.terms)
        self._times.append(float(t))
        self._toward.append(None if toward is None else float(toward))
        x.terms = {("y", n): 1.0}
        return Linear({("D", n): 1.0})

    def noise(self, t: float, s: float) -> Linear:
        """A fresh standard normal, drawn from the stretch of the Brownian path between t and s."""
        self._intervals.append((float(t), float(s)))
        return Linear({("xi", len(self._intervals) - 1): 1.0})

    def written_out(self, x: Linear) -> tuple[np.ndarray, np.ndarray]:
        """x in nothing but x_1, the means and the noises: ([x_1, D_0, D_1, ...], [xi_0, ...])."""
        out, noises = np.zeros(1 + len(self._times)), np.zeros(len(self._intervals))
        # an infinite coefficient is for the plan to refuse, with its row
        with np.errstate(invalid="ignore", over="ignore"):
            for (name, j), value in x.terms.items():
                if name == "y":
                    earlier, drawn = self._written[j]
                    out[: len(earlier)] += value * earlier
                    noises[: len(drawn)] += value * drawn
                elif name == "xi":
                    noises[j] += value
                else:
                    out[0 if name == "x" else j + 1] += value
        return out, noises

    def finish(self, x: Linear, schedule: Schedule, start: float, end: float, solver: str = "") -> Plan:
        """The plan whose output is `x`, a state at time `end`."""
        rows, count, draws = [*self._rows, x.terms], len(self._times), len(self._intervals)
        states = torch.zeros(count + 1, count + 1, dtype=torch.float64)
        means = torch.zeros(count + 1, count, dtype=torch.float64)
        noise = torch.zeros(count + 1, draws, dtype=torch.float64)
        table = {"x": (states, 0), "y": (states, 1), "D": (means, 0), "xi": (noise, 0)}
        for n, terms in enumerate(rows):
            for (name, j), value in terms.items():
                matrix, offset = table[name]
                matrix[n, j + offset] = value
        times = torch.tensor([*self._times, end], dtype=torch.float64)
        intervals = torch.tensor(self._intervals, dtype=torch.float64).reshape(draws, 2)
        asked = [t if s is None else s for t, s in zip(self._times, self._toward, strict=True)]
        toward = None if all(s is None for s in self._toward) else torch.tensor(asked, dtype=torch.float64)
        return Plan(times, states, means, noise, intervals, schedule, float(start), solver=solver, toward=toward)
