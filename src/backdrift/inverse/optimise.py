"""Posterior samplers that optimise: they fit y first, and leave the spread of the answers to something else.

    REDdiff   one picture that fits y and that the denoiser finds no fault with: a point, not a posterior
    ReSample  the nearest picture to D that fits y, mixed back into the path with a spread of its own

Neither spread is the posterior's; they are here to be measured.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.inverse.measurement import LinearMeasurement, Measurement
from backdrift.inverse.noise import GaussianNoise
from backdrift.inverse.sampler import PosteriorSampler, begin, falling
from backdrift.posterior import expand, flat
from backdrift.sample.grids import Angle, Grid
from backdrift.sample.plan import Step


class Adam:
    """Kingma and Ba's steps, element by element, so that a sample's do not depend on the batch. arXiv:1412.6980."""

    def __init__(self, x: Tensor, rate: float):
        self.rate, self.steps = rate, 0
        self.first, self.second = torch.zeros_like(x), torch.zeros_like(x)

    def step(self, x: Tensor, slope: Tensor) -> Tensor:
        """x after a step down the slope."""
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope.square()
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        return x - self.rate * first / (second.sqrt() + 1e-8)


@kind("posterior.REDdiff")
@dataclass(frozen=True, kw_only=True)
class REDdiff(PosteriorSampler):
    """min over mu of |y - A(mu)|^2 / 2 + strength E_t (sigma / alpha) <eps(x_t) - eps, mu>, x_t = alpha mu + sigma eps.

    Mardani et al. 2023, arXiv:2305.04391, Algorithm 1: one stochastic gradient at each of the falling times, by Adam.
    With their weight sigma / alpha the second gradient is mu - D(x_t). Draws differ by their noises alone.
    """

    strength: float = 0.25
    rate: float = 0.1
    grid: Grid = field(default_factory=Angle)
    follows: ClassVar[bool] = False

    def slope(self, mu: Tensor, D: Tensor, measurement: Measurement, y: Tensor) -> Tensor:
        """The gradient in mu."""
        return measurement.vjp(mu, measurement.forward(mu) - y) + self.strength * (mu - D)

    @torch.no_grad()
    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        x, y = begin(denoiser, measurement, y, n, noise)
        linear = isinstance(measurement, LinearMeasurement)
        mu = measurement.pinv(y).expand(x.shape) if linear else torch.zeros_like(x)
        adam = Adam(mu, self.rate)
        for k, t in enumerate(falling(self.grid, denoiser.process, steps)[:-1].tolist()):
            x = denoiser.process.corrupt(mu, t, noise.at("corrupt", k))
            D = denoiser(x, t).mean
            if on_step is not None:
                on_step(Step(k, steps, t, x, D))
            mu = adam.step(mu, self.slope(mu, D, measurement, y))
        return mu


@kind("posterior.ReSample")
@dataclass(frozen=True, kw_only=True)
class ReSample(PosteriorSampler):
    """Now and then D is made to fit y, and the state drawn from where both it and the path agree.

    Song et al. 2023, arXiv:2307.08123, section 3 and Eq. 12, in pixels: the "encoder" is the identity. With X the
    picture next to D that fits y, x' the ancestral step and v = gamma sigma_s^2 added / (alpha_t^2 (alpha_t^2 +
    sigma_t^2)), x_s is drawn from the product of N(alpha_s X, sigma_s^2) and N(x', v).

    every: the steps between two fits; the last one always fits. gamma: larger trusts y more. iterations, rate: of Adam
    on |y - A(X)|^2 where A is not linear; it ends where the residual is the noise's. Linear ones fit y exactly.
    """

    every: int = 1
    gamma: float = 40.0
    iterations: int = 200
    rate: float = 0.02
    grid: Grid = field(default_factory=Angle)

    def __post_init__(self):
        if not (self.every >= 1 and self.gamma > 0 and self.iterations >= 1 and self.rate > 0):
            raise UserError("ReSample needs every and iterations of at least 1, and a positive gamma and rate.")

    @torch.no_grad()
    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        x, y = begin(denoiser, measurement, y, n, noise)
        process = denoiser.process
        times = falling(self.grid, process, steps).tolist()
        for k, (t, s) in enumerate(itertools.pairwise(times)):
            belief = denoiser(x, t)
            if on_step is not None:
                on_step(Step(k, steps, t, x, belief.mean))
            x = process.bridge(x, belief, t, s, noise.at("bridge", k))
            if s > 0 and (steps - 1 - k) % self.every:
                continue
            fit = self.fit(belief.mean, measurement, y)
            (alpha, sigma), (alpha_s, sigma_s) = map(process.schedule.alpha_sigma, (t, s))
            # v over sigma_s^2
            ratio = float(self.gamma * process.transition(s, t)[1] / (alpha**2 * (alpha**2 + sigma**2)))
            draw = float(sigma_s) * (ratio / (1 + ratio)) ** 0.5 * noise.at("fit", k).normal(x)
            x = (ratio * float(alpha_s) * fit + x) / (1 + ratio) + draw if s > 0 else fit
        return x

    def fit(self, D: Tensor, measurement: Measurement, y: Tensor) -> Tensor:
        """The picture next to D that agrees with y."""
        if isinstance(measurement, LinearMeasurement):
            return D + measurement.pinv(y - measurement.forward(D))
        noise, adam, x = measurement.noise, Adam(D, self.rate), D
        enough = noise.std.square().mean() if isinstance(noise, GaussianNoise) else 0.0
        for _ in range(self.iterations):
            gap = measurement.forward(x) - y
            loose = flat(gap).square().mean(1) > enough
            if not bool(loose.any()):
                break
            x = torch.where(expand(loose, x).bool(), adam.step(x, measurement.vjp(x, gap)), x)
        return x
