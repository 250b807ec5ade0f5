"""Stochastic solvers of DPM-Solver++ and of EDM, as published.

Multistep stochastic solvers with exact integrals are `Multistep` in a stochastic gauge (multistep.py). Here are the
forms that differ: 2M with its midpoint rule, 3M with its printed coefficient, the two-stage 2S, and EDM's churn, which
adds noise before a deterministic step instead of after.

With lambda = log(alpha / sigma), h = lambda_s - lambda_t and eta = tau^2 the share of the reverse SDE's noise,

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) Dbar + sigma_s sqrt(1 - e^(-2 eta h)) xi.

`order` is that of the law. The strong order, along one Brownian path, is 1 for all of them (audit.py measures it).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.sample.exponential import Singlestep, between
from backdrift.sample.gauge import Pair, StochasticGauge, pairs, straight
from backdrift.sample.guard import Guard
from backdrift.sample.multistep import Multistep
from backdrift.sample.ode import Euler, Heun
from backdrift.sample.solver import Solver
from backdrift.sample.variable import LOG
from backdrift.schedule import Schedule


def kept(at: Pair, to: Pair, eta: float) -> tuple[float, float]:
    """(what a step keeps of x_t, standard deviation of the noise that it adds), both in their limits at either end."""
    if to[1] == 0:
        return 0.0, 0.0
    fall = math.inf if at[0] == 0 else math.log(to[0] / to[1]) - math.log(at[0] / at[1])
    decay = math.exp(-eta * fall) if eta else 1.0
    return to[1] / at[1] * decay, to[1] * math.sqrt(-math.expm1(-2 * eta * fall)) if eta else 0.0


@kind("solver.SDE2M")
@dataclass(frozen=True)
class SDE2M(Solver):
    """DPM-Solver++(2M) SDE with the midpoint rule: Dbar = D + (h / 2 h_before) (D - D_before).

    Lu et al. 2022, arXiv:2211.01095, Eq. 18, as in its authors' and k-diffusion's code. With exact integrals (the
    latter's "heun" form) it is `SASolver(2, corrector=False, tau)`.
    """

    eta: float = 1.0
    guarded: bool = False
    order = 2

    def budget(self, steps, schedule, start):
        return replace(self, guarded=True), steps

    def trace(self, trace, x, schedule, times):
        return _multistep(self, trace, x, schedule, times, _midpoint)


@kind("solver.PublishedSDE3M")
@dataclass(frozen=True)
class PublishedSDE3M(Solver):
    """DPM-Solver++(3M) SDE as printed in k-diffusion, with half of the last coefficient that the integral asks for."""

    eta: float = 1.0
    guarded: bool = False
    order = 2

    def trace(self, trace, x, schedule, times):
        return _multistep(self, trace, x, schedule, times, _published_3m)


def SDE3M(tau: float = 1.0) -> Multistep:
    """DPM-Solver++(3M) SDE with its integrals exact."""
    return Multistep(StochasticGauge(tau), LOG, 3)


def _multistep(solver, trace, x, schedule, times, averages):
    at = pairs(schedule, times)
    lam = [float(schedule.logsnr(t)) / 2 for t in times]
    guard = Guard(trace, at[0], solver.guarded)
    known = []
    for n in range(len(times) - 1):
        D = trace.evaluate(x, times[n])
        known = [(lam[n], D), *known][:3]
        keep, std = kept(at[n], at[n + 1], solver.eta)
        noise = std * trace.noise(times[n], times[n + 1])
        candidates = [D]
        if math.isfinite(lam[n + 1] - lam[n]):
            nodes = [(u, value) for u, value in known if math.isfinite(u)]
            candidates = [*averages(nodes, lam[n + 1] - lam[n], solver.eta), D]
        x = guard.first([straight(x, bar, at[n], at[n + 1], keep) + noise for bar in candidates], at[n + 1])
    return x


def _midpoint(nodes, h, eta):
    if len(nodes) < 2:
        return []
    (u0, D0), (u1, D1) = nodes[:2]
    return [D0 + (h / 2 / (u0 - u1)) * (D0 - D1)]


def _published_3m(nodes, h, eta):
    """k-diffusion's `sample_dpmpp_3m_sde`: phi_2 d_1 - phi_3 d_2, where the integral is phi_2 d_1 - 2 phi_3 d_2."""
    H = (1 + eta) * h
    share = -math.expm1(-H)
    phi_2 = 1 - share / H
    phi_3 = phi_2 / H - 0.5
    if len(nodes) < 2:
        return []
    (u0, D0), (u1, D1) = nodes[:2]
    slope = (h / (u0 - u1)) * (D0 - D1)
    second = D0 + (phi_2 / share) * slope
    if len(nodes) < 3:
        return [second]
    u2, D2 = nodes[2]
    r0, r1 = (u0 - u1) / h, (u1 - u2) / h
    before = (1 / r1) * (D1 - D2)
    bend = (1 / (r0 + r1)) * (slope - before)
    return [D0 + (phi_2 / share) * (slope + r0 * bend) - (phi_3 / share) * bend, second]


@kind("solver.SDE2S")
@dataclass(frozen=True)
class SDE2S(Singlestep):
    """DPM-Solver++ SDE with a stage at h / 2, whose D takes the place of D. Lu et al. 2022, arXiv:2211.01095.

    The stage's noise and the step's are of one path: the step keeps what is left of the stage's, and adds the rest.
    """

    eta: float = 1.0

    def __post_init__(self):
        if self.order != 2:
            raise UserError(f"SDE2S has order 2, not {self.order}.")

    def single(self, trace, schedule, x, D, t, s):
        at, to = pairs(schedule, [t, s])
        keep, std = kept(at, to, self.eta)
        return straight(x, D, at, to, keep) + std * trace.noise(t, s)

    def step(self, trace, guard, schedule, x, D, t, s):
        time = between(schedule, t, s, 0.5)
        at, mid, to = pairs(schedule, [t, time, s])
        keep, std = kept(at, mid, self.eta)
        first = std * trace.noise(t, time)
        D_mid = trace.evaluate(straight(x, D, at, mid, keep) + first, time)
        again, rest = kept(mid, to, self.eta)
        noise = again * first + rest * trace.noise(time, s)
        return straight(x, D_mid, at, to, kept(at, to, self.eta)[0]) + noise


@kind("solver.Churn")
@dataclass(frozen=True)
class Churn(Solver):
    """EDM's stochastic sampler: noise is raised to (1 + gamma) times its level before every deterministic step.

    Karras et al. 2022, arXiv:2206.00364, Algorithm 2, with gamma = min(amount / steps, sqrt(2) - 1) where sigma / alpha
    lies in [low, high]. In any schedule the level is sigma / alpha. No evaluation lies beyond t = 1: there the raised
    level is capped. base: `Heun` or `Euler`, whose one step follows. inflate: their S_noise.
    """

    base: Heun | Euler = field(default_factory=Heun)
    amount: float = 10.0
    low: float = 0.0
    high: float = math.inf
    inflate: float = 1.0

    @property
    def order(self) -> int:
        return self.base.order

    def __post_init__(self):
        if not (self.amount >= 0 and 0 <= self.low <= self.high and self.inflate > 0):
            raise UserError("Churn needs amount >= 0, 0 <= low <= high and inflate > 0.")
        if not isinstance(self.base, (Heun, Euler)):
            raise UserError(f"Churn takes Heun or Euler steps, not {type(self.base).__name__}.")

    def budget(self, steps, schedule, start):
        base, intervals = self.base.budget(steps, schedule, start)
        return replace(self, base=base), intervals

    def trace(self, trace, x, schedule, times):
        count = len(times) - 1
        plain = getattr(self.base, "plain", 0)
        gamma = min(self.amount / count, math.sqrt(2) - 1)
        for n, (t, s) in enumerate(itertools.pairwise(times)):
            raised = self._raised(schedule, t, gamma)
            (alpha, sigma), (alpha_up, sigma_up) = pairs(schedule, [t, raised])
            keep = alpha_up / alpha if raised > t else 1.0
            std = math.sqrt(max(sigma_up**2 - (keep * sigma) ** 2, 0.0)) * self.inflate
            # of the path's stretch from t to s, and also where std = 0: the path then refines with the grid
            x = keep * x + std * trace.noise(t, s)
            base = self.base
            if isinstance(base, Heun):
                base = replace(base, plain=int(n >= count - plain))
            x = base.trace(trace, x, schedule, [raised, s])
        return x

    def _raised(self, schedule: Schedule, t: float, gamma: float) -> float:
        ((alpha, sigma),) = pairs(schedule, [t])
        if not alpha or not self.low <= sigma / alpha <= self.high:
            return t
        return min(1.0, max(t, float(schedule.time(2 * (math.log(alpha / sigma) - math.log1p(gamma))))))
