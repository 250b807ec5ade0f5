"""Samplers of the score: Langevin dynamics, the reverse SDE by its own discretisations, and predictor-corrector.

The score of x_t is (alpha D - x) / sigma^2. Those of fixed step sizes are tables like any other solver; the
predictor-corrector's Langevin steps take their size from the norm of each sample's score, and is a loop.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace

import torch

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.posterior import expand
from backdrift.process.gaussian import Gaussian
from backdrift.sample.gauge import pairs, straight
from backdrift.sample.guard import Guard
from backdrift.sample.plan import Step
from backdrift.sample.sde import step_variances
from backdrift.sample.solver import Sampler, Solver, check_evaluations, check_times


@kind("solver.AnnealedLangevin")
@dataclass(frozen=True)
class AnnealedLangevin(Solver):
    """Langevin steps at falling noise levels. Song and Ermon 2019, arXiv:1907.05600, Algorithm 1.

    At a level:  x <- x + (size / 2) (alpha D - x) + sigma sqrt(size) xi,  which is their step size eps sigma_i^2 /
    sigma_L^2 with size = eps / sigma_L^2. The last evaluation at a level is spent on the way to the next, by holding D
    constant. published: the last one is a Langevin step too, and x / alpha is left as it is between levels, which needs
    levels so close that Langevin steps take the surplus noise away; the last level still ends in D. The noise belongs
    to evaluations and not to a path in time, so more levels do not refine it.

    size: the step in units of sigma^2, below 4 (0.2 in the paper). repeats: the evaluations at each level, from the
    first; () means `inner` at each. It samples by mixing, not by integration: it has no order in the number of levels.
    """

    size: float = 0.2
    inner: int = 5
    repeats: tuple[int, ...] = ()
    published: bool = False
    order = 0
    strong = 0

    def __post_init__(self):
        if not (0 < self.size < 4 and self.inner >= 1):
            raise UserError("AnnealedLangevin needs a size in (0, 4) and at least one inner step.")

    def budget(self, steps, schedule, start):
        if self.repeats:
            check_evaluations(self, self.repeats, steps)
            return self, len(self.repeats)
        levels = max(1, steps // self.inner)
        repeats = tuple(steps // levels + (n < steps % levels) for n in range(levels))
        return replace(self, repeats=repeats), levels

    def trace(self, trace, x, schedule, times):
        at = pairs(schedule, times)
        last = len(times) - 2
        repeats = self.repeats or (self.inner,) * (last + 1)
        if len(repeats) != last + 1:
            raise UserError(f"AnnealedLangevin was given {len(repeats)} levels' steps for {last + 1} levels.")
        for n, count in enumerate(repeats):
            (alpha, sigma), to = at[n], at[n + 1]
            keep = self.published and n < last and alpha > 0
            for k in range(count):
                D = trace.evaluate(x, times[n])
                if k == count - 1 and not keep:
                    x = straight(x, D, at[n], to)
                    continue
                noise = trace.noise(times[n], times[n])
                x = (1 - self.size / 2) * x + (self.size / 2 * alpha) * D + (sigma * math.sqrt(self.size)) * noise
            if keep:
                x = (to[0] / alpha) * x
        return x


def _reverse_step(x, D, at, variance, drift):
    """x - drift x + variance score: one explicit step of the reverse SDE, without its noise."""
    share = variance / at[1] ** 2
    return (1 - drift - share) * x + (share * at[0]) * D


@dataclass(frozen=True)
class _ReverseSDE(Solver):
    """Explicit steps of dx = (f x - g^2 score) dt + g dw; the last one, to sigma = 0, is D, as is usual.

    A step whose coefficients are not finite, or that the guard does not let pass, is the exact one of DDPM.
    """

    guarded: bool = False
    order = 1

    def budget(self, steps, schedule, start):
        return replace(self, guarded=True), steps

    @abstractmethod
    def increments(self, schedule, t, s):
        """(relative drift, added variance) of the step from t to s."""

    def trace(self, trace, x, schedule, times):
        at, variances = pairs(schedule, times), step_variances(schedule, times)
        guard = Guard(trace, at[0], self.guarded)
        for n, (t, s) in enumerate(itertools.pairwise(times)):
            D = trace.evaluate(x, t)
            small, _ = variances[n]
            noise = trace.noise(t, s)
            if at[n + 1][1] == 0:
                x = straight(x, D, at[n], at[n + 1])
                continue
            keep = math.sqrt(max(at[n + 1][1] ** 2 - small, 0.0)) / at[n][1]
            exact = straight(x, D, at[n], at[n + 1], keep) + math.sqrt(small) * noise
            drift, variance = self.increments(schedule, t, s)
            candidates = [exact]
            if math.isfinite(drift) and math.isfinite(variance) and at[n][0] > 0:
                candidates.insert(0, _reverse_step(x, D, at[n], variance, drift) + math.sqrt(variance) * noise)
            x = guard.first(candidates, at[n + 1])
        return x


@kind("solver.EulerMaruyama")
@dataclass(frozen=True)
class EulerMaruyama(_ReverseSDE):
    """The reverse SDE by Euler-Maruyama in t. Song et al. 2021, arXiv:2011.13456, Eq. 6 and appendix E.

    f = alpha' / alpha and g^2 = (sigma^2)' - 2 f sigma^2 at the start of the step. Weak and strong order 1.
    """

    def increments(self, schedule, t, s):
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(t))
        d_alpha, d_sigma = (float(v) for v in schedule.rates(t))
        if not alpha:
            return math.inf, math.inf
        f = d_alpha / alpha
        return f * (t - s), 2 * sigma * (d_sigma - f * sigma) * (t - s)


@kind("solver.ReverseDiffusion")
@dataclass(frozen=True)
class ReverseDiffusion(_ReverseSDE):
    """The reverse SDE by the forward process's own increments. Song et al. 2021, arXiv:2011.13456, Eq. 46.

    x_s = (2 - alpha_t / alpha_s) x_t + v score + sqrt(v) xi, v the variance that the process adds from s to t. Weak and
    strong order 1.
    """

    def increments(self, schedule, t, s):
        (alpha, _), (alpha_s, _) = pairs(schedule, [t, s])
        # x - f with f the forward step's own change of the mean: (2 - alpha_t / alpha_s) x = (1 - drift) x
        return alpha / alpha_s - 1, step_variances(schedule, [t, s])[0][1]


@kind("solver.PredictorCorrector")
@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A step of a solver, then a Langevin step at the new level. Song et al. 2021, arXiv:2011.13456, Algorithms 1 to 5.

    The Langevin step x + e score + sqrt(2 e) xi has e = 2 (snr |xi| / |score|)^2 with the norms of each sample by
    itself, so that a sample does not depend on its batch (the published code averages over the batch). Where a score
    is small, e is capped at twice its usual 2 snr^2 sigma^2, and at sigma^2 / 2, where the step would leave the level.

    The noise is keyed by step: a correction has a size of its own, so there is no path for more steps to refine.

    predictor: any one-evaluation solver, such as ReverseDiffusion() or DDIM(eta=1). corrections: how many of the steps,
    from the first, are followed by a correction; None means all but the last, after which nothing is evaluated.
    """

    predictor: Solver = field(default_factory=ReverseDiffusion)
    snr: float = 0.16
    corrections: int | None = None

    def __post_init__(self):
        if not self.snr > 0:
            raise UserError(f"PredictorCorrector needs snr > 0, not {self.snr}.")

    def budget(self, steps, schedule, start):
        most = (steps - 1) // 2
        corrections = most if self.corrections is None else min(self.corrections, most)
        predictor, _ = self.predictor.budget(1, schedule, start)
        return replace(self, predictor=predictor, corrections=corrections), steps - corrections

    def run(self, denoiser, x1, times, cond=None, noise=None, on_step=None):
        process = denoiser.process
        if not isinstance(process, Gaussian):
            raise UserError(f"PredictorCorrector serves a Gaussian process, not {type(process).__name__}.")
        if noise is None:
            raise UserError("PredictorCorrector is stochastic: give it a Noise, such as Noise.of(seed, batch).")
        times = [float(t) for t in times]
        check_times(times)
        last = len(times) - 2
        corrections = last if self.corrections is None else self.corrections
        total, shown, x = len(times) - 1 + corrections, 0, x1

        def tell(step: Step) -> None:
            nonlocal shown
            if on_step is not None:
                on_step(step._replace(n=shown, total=total))
            shown += 1

        for n, (t, s) in enumerate(itertools.pairwise(times)):
            plan = self.predictor.plan(process.schedule, [t, s])
            if plan.evaluations != 1:
                raise UserError(f"A predictor makes one evaluation a step; {self.predictor} makes {plan.evaluations}.")
            x = plan.run(denoiser, x, cond, noise.at("predict", n), tell)
            alpha, sigma = process.schedule.alpha_sigma(s)
            if n >= corrections or sigma == 0:
                continue
            mean = denoiser(x, s, cond).mean
            tell(Step(0, total, s, x, mean))
            score = (float(alpha) * mean - x) / float(sigma) ** 2
            draw = noise.at("correct", n).normal(x)
            size = 2 * (self.snr * _norm(draw) / _norm(score).clamp_min(1e-30)) ** 2
            size = size.clamp_max(min(4 * self.snr**2, 0.5) * float(sigma) ** 2)
            x = x + expand(size, x) * score + expand((2 * size).sqrt(), x) * draw
        return x


def _norm(x: torch.Tensor) -> torch.Tensor:
    """(B,), one norm per sample."""
    return x.flatten(1).norm(dim=1)
