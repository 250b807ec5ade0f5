"""The Gaussian process x_t = alpha(t) x_0 + sigma(t) eps.

From s to t > s it is x_t = (alpha_t / alpha_s) x_s + N(0, var_ts) with var_ts = sigma_t^2 - (alpha_t / alpha_s)^2
sigma_s^2, so x_s given x_t and x_0 is Gaussian (Ho et al. 2020, arXiv:2006.11239, Eq. 6 and 7, in this notation):

    mean = (alpha_t / alpha_s) (sigma_s^2 / sigma_t^2) x_t + alpha_s (var_ts / sigma_t^2) x_0
    var  = sigma_s^2 var_ts / sigma_t^2

A projection (centred, symmetric, masked) may be applied to every draw; data are then taken to lie in its range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.posterior import TensorPosterior, expand, flat
from backdrift.process.base import Process
from backdrift.schedule import Schedule


@kind("process.Centred")
@dataclass(frozen=True)
class Centred:
    """The projection that removes the mean over one axis of the event: states whose centre stays at the origin.

    dim: the axis, counted from the end (-2 for points (B, nodes, 3)).
    """

    dim: int = -2

    def __call__(self, x: Tensor) -> Tensor:
        return x - x.mean(self.dim, keepdim=True)


@kind("process.Gaussian")
@dataclass(frozen=True)
class Gaussian(Process):
    """Gaussian corruption by a schedule. project: an orthogonal projection for every draw, or None."""

    schedule: Schedule
    project: Callable[[Tensor], Tensor] | None = None

    def _draw(self, like, noise):
        eps = noise.normal(like)
        return eps if self.project is None else self.project(eps)

    def prior(self, like, noise, cond=None):
        _, sigma = self.schedule.alpha_sigma(1.0)
        return self._draw(like, noise) * float(sigma)

    def transition(self, s: float | Tensor | None, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(scale, variance) of x_t = scale x_s + N(0, variance), for s <= t; s = None is clean data.

        Raises `UserError` where s > t.
        """
        alpha_t, sigma_t = self.schedule.alpha_sigma(t)
        if s is None:
            return alpha_t, sigma_t**2
        alpha_s, sigma_s = self.schedule.alpha_sigma(s)
        if bool((torch.as_tensor(s) > torch.as_tensor(t)).any()):
            raise UserError("Corruption goes from a smaller time to a larger one; here the start lies after the end.")
        scale = torch.where(alpha_s == alpha_t, 1.0, alpha_t / alpha_s)
        return scale, (sigma_t**2 - (scale * sigma_s) ** 2).clamp_min(0)

    def corrupt(self, x, t, noise, start=None):
        scale, variance = self.transition(start, t)
        return expand(scale, x) * x + expand(variance.sqrt(), x) * self._draw(x, noise)

    def bridge(self, xt, posterior, t, s, noise):
        (alpha_s, sigma_s), (_, sigma_t) = self.schedule.alpha_sigma(s), self.schedule.alpha_sigma(t)
        scale, added = self.transition(s, t)
        share = added / sigma_t**2
        mean = expand(scale * (sigma_s / sigma_t) ** 2, xt) * xt + expand(alpha_s * share, xt) * posterior.mean
        std = expand((sigma_s**2 * share).sqrt(), xt)
        if posterior.fraction is not None:
            # Nichol and Dhariwal 2021, arXiv:2102.09672, Eq. 15: between the bridge's variance and the step's own;
            # a step that ends in clean data stays free of noise, also at fraction = 1
            mixed = std ** (1 - posterior.fraction) * expand(added.sqrt(), xt) ** posterior.fraction
            std = torch.where(std > 0, mixed, 0.0)
        return mean + std * self._draw(xt, noise)

    def loss(self, posterior, x0, xt, t):
        return flat(posterior.mean - x0).square().sum(1)

    def log_likelihood(self, xt, points, t):
        alpha, sigma = self.schedule.alpha_sigma(t)
        x, y = flat(xt).double(), flat(points).double()
        # differences, not expanded squares: exact where x_t is close to a point
        gaps = torch.stack([(row - a * y).square().sum(1) for row, a in zip(x, alpha.expand(len(x)), strict=True)])
        return -torch.where(gaps == 0, 0.0, gaps / (2 * expand(sigma, x) ** 2))

    def belief(self, weights, points):
        mean = weights @ flat(points).to(weights.dtype)
        return TensorPosterior(mean.view(len(weights), *points.shape[1:]).to(points.dtype))
