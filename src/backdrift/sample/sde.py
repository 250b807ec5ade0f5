"""Stochastic solvers: the reverse process with fresh noise in every step.

Both converge with order 1 in law and with strong order 1: along one Brownian path, that is for one seed, twice the
steps halve the distance to where the path leads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.process.gaussian import Gaussian
from backdrift.sample.gauge import pairs
from backdrift.sample.solver import Solver
from backdrift.schedule import Schedule


def step_variances(schedule: Schedule, times: list[float]) -> list[tuple[float, float]]:
    """For each step from t to s: (variance of x_s given x_t and x_0, variance that the process adds from s to t).

    These are DDPM's two choices.
    """
    t, s = (torch.tensor(part, dtype=torch.float64) for part in (times[:-1], times[1:]))
    (_, sigma), (_, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    _, added = Gaussian(schedule).transition(s, t)
    return list(zip(((sigma_s / sigma) ** 2 * added).tolist(), added.tolist(), strict=True))


@kind("solver.DDIM")
@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = alpha_s D + sqrt(sigma_s^2 - c^2) eps + c xi, with c = eta times the bridge's standard deviation.

    Song et al. 2021, arXiv:2010.02502, Eq. 12 and 16. eta = 0 is deterministic; eta = 1 is DDPM with the smaller
    variance, which others call Euler ancestral.
    """

    eta: float = 0.0
    order = 1

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise UserError(f"DDIM takes eta in [0, 1], not {self.eta}.")

    def trace(self, trace, x, schedule, times):
        at, variances = pairs(schedule, times), step_variances(schedule, times)
        for n in range(len(times) - 1):
            (alpha, sigma), (alpha_s, sigma_s) = at[n], at[n + 1]
            D = trace.evaluate(x, times[n])
            c = self.eta * math.sqrt(variances[n][0])
            ratio = math.sqrt(max(sigma_s**2 - c**2, 0.0)) / sigma
            x = ratio * x + (alpha_s - ratio * alpha) * D
            if self.eta > 0:
                # also where c = 0, in the last step: the path then has as many intervals as the grid, and refines
                x = x + c * trace.noise(times[n], times[n + 1])
        return x


@kind("solver.DDPM")
@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling: the mean of x_s given x_t and x_0 = D, plus noise. Ho et al. 2020, arXiv:2006.11239, Alg. 2.

    fraction: 0 takes the bridge's variance (their beta-tilde), 1 the variance that the process adds in the step (their
    beta), in between their interpolation in log (Nichol and Dhariwal 2021, arXiv:2102.09672, Eq. 15). The last step, to
    the data, adds none. guarded: whether the noise is capped at the level of the time that it leads to, which only
    fraction > 0 ever exceeds, in a long last step.
    """

    fraction: float = 0.0
    guarded: bool = False
    order = 1

    def __post_init__(self):
        if not 0 <= self.fraction <= 1:
            raise UserError(f"DDPM takes a fraction in [0, 1], not {self.fraction}.")

    def budget(self, steps, schedule, start):
        return replace(self, guarded=True), steps

    def trace(self, trace, x, schedule, times):
        at, variances = pairs(schedule, times), step_variances(schedule, times)
        for n in range(len(times) - 1):
            (alpha, sigma), (alpha_s, sigma_s) = at[n], at[n + 1]
            D = trace.evaluate(x, times[n])
            small, large = variances[n]
            share = large / sigma**2
            x = (sigma_s / sigma) ** 2 * (alpha / alpha_s) * x + alpha_s * share * D
            std = math.sqrt(small) ** (1 - self.fraction) * math.sqrt(large) ** self.fraction if small > 0 else 0.0
            std = min(std, sigma_s) if self.guarded else std
            # also where std = 0, in the last step: the path then has as many intervals as the grid, and refines
            x = x + std * trace.noise(times[n], times[n + 1])
        return x


@kind("solver.Jump")
@dataclass(frozen=True)
class Jump(Solver):
    """x_s = alpha_s D + sigma_s (sqrt(1 - gamma^2) eps + gamma xi): to the denoiser's answer, and from there to s.

    The sampler of flow maps and consistency models. A flow map is asked for the time m <= s with
    sigma_m / alpha_m = sqrt(1 - gamma^2) sigma_s / alpha_s, so that the state is on the flow before xi is added: gamma
    0 jumps from time to time along it. gamma: the share of fresh noise. 1 goes to the end of the path and noises it
    anew, which is all that a consistency model can do (Song et al. 2023, arXiv:2303.01469, Algorithm 1); between them
    it is the gamma-sampling of Kim et al. 2024, arXiv:2310.02279, Algorithm 3. An ordinary denoiser makes 0 DDIM, and
    follows no flow for gamma > 0, which has order 0.
    """

    gamma: float = 1.0
    order = 0
    strong = 0

    def __post_init__(self):
        if not 0 <= self.gamma <= 1:
            raise UserError(f"Jump takes a gamma in [0, 1], not {self.gamma}.")

    def trace(self, trace, x, schedule, times):
        at = pairs(schedule, times)
        for n in range(len(times) - 1):
            (alpha, sigma), (alpha_s, sigma_s) = at[n], at[n + 1]
            D = trace.evaluate(x, times[n], self._toward(schedule, times[n + 1]))
            keep = math.sqrt(1 - self.gamma**2) * sigma_s / sigma
            x = keep * x + (alpha_s - keep * alpha) * D
            if self.gamma > 0:
                # also where sigma_s = 0, in the last step: the path then has as many intervals as the grid, and refines
                x = x + self.gamma * sigma_s * trace.noise(times[n], times[n + 1])
        return x

    def _toward(self, schedule, s: float) -> float:
        """m above."""
        if self.gamma in (0, 1) or s == 0:
            return s if self.gamma == 0 else 0.0
        return float(schedule.time(schedule.logsnr(s) - math.log(1 - self.gamma**2)).clamp(0, s))
