"""Posterior samplers by weighted particles, which make an approximation exact as their number grows.

    Twisted    a guided step proposes, and the weights put right what it got wrong: the chain of the unguided steps,
               reweighted by p(y | x_0), is the target whatever the guide. Wu et al. 2023, arXiv:2306.17775
    Filtering  the state follows a y that is noised along with it, and each step is the exact one given the next y.
               Dou and Song 2024, openreview tplXNcHZs1: exact where y has no noise of its own

Each sample owns its particles. The target is the posterior of the chain of steps, so a bias of the steps remains; that
of the particles falls as one over their count.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.guide.particles import resampled, systematic
from backdrift.inverse.guided import DPS, Guidance, Guided
from backdrift.inverse.sampler import PosteriorSampler, begin, falling, needs_linear
from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.process.gaussian import Gaussian
from backdrift.sample.grids import Angle, Grid
from backdrift.sample.plan import Step


class Cloud(NamedTuple):
    """n samples of K particles each at t = 0.

    x: (n, K, *event). log_weights: (n, K) float64, normalised. log_evidence: (n,), the log of an unbiased estimate of
    p(y) under the chain of steps; NaN where it is not known. effective: (n,), the effective number of particles.
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor

    @property
    def effective(self) -> Tensor:
        return 1 / self.log_weights.exp().square().sum(1)


@dataclass(frozen=True, kw_only=True)
class ParticleSampler(PosteriorSampler):
    """count: particles of each sample; a step is one evaluation of count times as many states."""

    count: int = 16
    grid: Grid = field(default_factory=Angle)

    def __post_init__(self):
        if self.count < 1:
            raise UserError(f"Particle samplers need a count of at least 1, not {self.count}.")

    def cloud(self, denoiser, measurement, y, n, *, steps, noise, on_step=None) -> Cloud:
        """All particles; arguments as for the call."""
        raise TypeError("a particle sampler states its cloud")

    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        x, log_weights, _ = self.cloud(denoiser, measurement, y, n, steps=steps, noise=noise, on_step=on_step)
        return _picked(x, log_weights, noise.at("pick"))


def _picked(x: Tensor, log_weights: Tensor, noise: Noise) -> Tensor:
    """One particle of each sample, by weight."""
    pick = systematic(log_weights.softmax(1), noise.uniform(log_weights[:, 0]), 1)[:, 0]
    return x[torch.arange(len(x), device=x.device), pick]


def _owned(noise: Noise, count: int) -> Noise:
    """The noise of `count` particles for each sample."""
    index = (noise.index[:, None] * count + torch.arange(count)).flatten()
    return Noise(noise.seed, index, noise.stream).at("particles", count)


class _Kernel(NamedTuple):
    """x_s = keep x_t + pull D + std z: the step without guidance."""

    keep: float
    pull: float
    std: float


def _kernel(process: Gaussian, t: float, s: float) -> _Kernel:
    if process.project is not None:
        raise UserError("Particle samplers serve a process without a projection.")
    (alpha_s, sigma_s), (_, sigma) = process.schedule.alpha_sigma(s), process.schedule.alpha_sigma(t)
    scale, added = process.transition(s, t)
    share = added / sigma**2
    return _Kernel(float(scale * (sigma_s / sigma) ** 2), float(alpha_s * share), float(sigma_s * share.sqrt()))


@kind("posterior.Twisted")
@dataclass(frozen=True, kw_only=True)
class Twisted(ParticleSampler):
    """Guided steps with their weights. Wu et al. 2023, arXiv:2306.17775, Algorithm 1, with `DPS` as its guide there.

    guide: states the gradient that proposes and the p(y | x_t) by which particles are kept on the way: DPS() or
    PiGDM(). The last step, which has no noise, is not guided.
    """

    guide: Guidance = field(default_factory=DPS)

    def __post_init__(self):
        super().__post_init__()
        if type(self.guide).log_twist is Guidance.log_twist:
            raise UserError(f"{type(self.guide).__name__} states no p(y | x_t); let DPS or PiGDM guide the particles.")

    def check(self, measurement):
        self.guide.check(measurement)

    @torch.no_grad()
    def cloud(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        self.check(measurement)
        x1, y = begin(denoiser, measurement, y, n, noise)
        K, process, own = self.count, denoiser.process, _owned(noise, self.count)
        times = falling(self.grid, process, steps).tolist()
        x = process.prior(x1.repeat_interleave(K, 0), own.at("prior"))
        each = y if len(y) == 1 else y.repeat_interleave(K, 0)
        guided = Guided(denoiser, measurement, each, self.guide, own.at("guide"))
        log_weights = x1.new_full((n, K), -math.log(K), dtype=torch.float64)
        evidence = log_weights.new_zeros(n)
        passed = log_weights.new_zeros(n * K)  # the twist that a particle has been paid, less its step's correction
        for k, (t, s) in enumerate(itertools.pairwise(times)):
            mean, moved, twist = _guided(guided, x, t)
            log_weights, evidence = _weighed(log_weights, evidence, (twist - passed).view(n, K))
            before = torch.arange(n * K, device=x.device)
            if k:
                x, log_weights, before = resampled(x, log_weights, noise.at("resample", k))
            mean, moved, twist = mean[before], moved[before], twist[before]
            if on_step is not None:
                x_shown, mean_shown = (
                    _picked(v.view(n, K, *x1.shape[1:]), log_weights, noise.at("show", k)) for v in (x, mean)
                )
                on_step(Step(k, steps, t, x_shown, mean_shown))
            keep, pull, std = _kernel(process, t, s)
            z, shift = own.at("step", k).normal(x), (pull / std) * moved if std else torch.zeros_like(moved)
            x = keep * x + pull * mean + std * (shift + z)
            # log N(x_s; without guidance) - log N(x_s; with it), in units of the step's noise
            passed = twist + flat(shift * z + shift.square() / 2).double().sum(1)
        last = measurement.log_likelihood(x, each).double() - passed
        log_weights, evidence = _weighed(log_weights, evidence, last.view(n, K))
        return Cloud(x.view(n, K, *x1.shape[1:]), log_weights.log_softmax(1), evidence)


def _guided(guided: Guided, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """(D, the guidance's move of it, the log twist (B,) float64) at x_t."""
    alpha, sigma = guided.process.schedule.alpha_sigma(t)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        mean = guided.denoiser(leaf, t).mean
        at = guided.estimate(leaf, mean, t)
        moved = float(sigma**2 / alpha) * guided.rule.gradient(at)
    return mean.detach(), moved.detach(), guided.rule.log_twist(at)


def _weighed(log_weights: Tensor, evidence: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (n, K) after a gain, and the evidence's estimate with the mean gain under the weights before it."""
    before = log_weights.log_softmax(1)
    return before + gain, evidence + (before + gain).logsumexp(1)


@kind("posterior.Filtering")
@dataclass(frozen=True, kw_only=True)
class Filtering(ParticleSampler):
    """x_s given x_t and a noised y_s, exactly, by particles weighted with p(y_s | x_t). Dou and Song 2024, Alg. 2.

    y_t is y taken through the process with noise A eps, and N(A x_t, alpha_t^2 Gamma) is taken to be its law at each
    level. That counts the detector's noise anew at every level, so draws of a noisy y are too close to it: exact as the
    noise goes to 0. Linear measurements with Gaussian noise.
    """

    def check(self, measurement):
        needs_linear(self, measurement)

    @torch.no_grad()
    def cloud(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        self.check(measurement)
        x1, y = begin(denoiser, measurement, y, n, noise)
        K, process, own = self.count, denoiser.process, _owned(noise, self.count)
        times = falling(self.grid, process, steps).tolist()
        # y's own path to noise, one for each sample
        path = [y.expand(n, *y.shape[1:])]
        for k, (s, t) in enumerate(itertools.pairwise(reversed(times))):
            scale, added = process.transition(s, t)
            fresh = measurement.forward(noise.at("y", k).normal(x1))
            path.append(float(scale) * path[-1] + float(added.sqrt()) * fresh)
        path = [level.repeat_interleave(K, 0) for level in reversed(path)]
        alpha, sigma = (float(v) for v in process.schedule.alpha_sigma(times[0]))
        x = _toward(measurement, x1.new_zeros(n * K, *x1.shape[1:]), sigma, path[0], alpha, own)
        log_weights = x1.new_full((n, K), -math.log(K), dtype=torch.float64)
        for k, (t, s) in enumerate(itertools.pairwise(times)):
            mean = denoiser(x, t).mean
            keep, pull, std = _kernel(process, t, s)
            centre = keep * x + pull * mean
            alpha = float(process.schedule.alpha_sigma(s)[0])
            # p(y_s | x_t), up to what is the same for all particles
            gap = path[k + 1] - measurement.forward(centre)
            # the last step has no noise of its own: there p(x_0 | x_t) is near N(D, sigma^2 / alpha^2)
            width = std if std else float(torch.div(*reversed(process.schedule.alpha_sigma(t))))
            solved = measurement.solve(gap, gap.new_full((len(gap),), (width / alpha) ** 2)) / alpha**2
            log_weights = log_weights - (flat(gap) * flat(solved)).double().sum(1).view(n, K) / 2
            if on_step is not None:
                shown = (_picked(v.view(n, K, *x1.shape[1:]), log_weights, noise.at("show", k)) for v in (x, mean))
                on_step(Step(k, steps, t, *shown))
            centre, log_weights, _ = resampled(centre, log_weights, noise.at("resample", k))
            if std:
                x = _toward(measurement, centre, std, path[k + 1], alpha, own.at("step", k))
            else:
                x = measurement.prox(centre, path[k + 1], centre.new_full((n * K,), width**2))
        return Cloud(x.view(n, K, *x1.shape[1:]), log_weights.log_softmax(1), log_weights.new_full((n,), math.nan))


def _toward(measurement, centre: Tensor, std: float, y: Tensor, alpha: float, noise: Noise) -> Tensor:
    """A draw of x ~ N(centre, std^2 I) N(y; A x, alpha^2 Gamma)."""
    x = centre + std * noise.at("x").normal(centre)
    y = y + alpha * measurement.variance(y).sqrt() * noise.at("y").normal(y)
    return measurement.prox(x / alpha, y / alpha, x.new_full((len(x),), (std / alpha) ** 2)) * alpha
