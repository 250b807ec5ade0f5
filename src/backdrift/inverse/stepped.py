"""Posterior samplers that move the state after each ancestral step, by an amount that is the same however short it is.

So their strength grows with the number of steps, and their law has no limit: what they draw is defined by the number of
steps as much as by y. They are the methods as published.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.inverse.measurement import Measurement
from backdrift.inverse.sampler import PosteriorSampler, begin, falling, needs_linear
from backdrift.noise import Noise
from backdrift.posterior import TensorPosterior, flat
from backdrift.sample.grids import Angle, Grid
from backdrift.sample.plan import Step


@kind("posterior.StepDPS")
@dataclass(frozen=True, kw_only=True)
class StepDPS(PosteriorSampler):
    """x_s <- ancestral step - zeta grad_{x_t} |y - A(D(x_t))|: DPS as published. Chung et al. 2023, arXiv:2209.14687.

    Algorithm 1 with zeta_i = zeta' / |R| on the squared norm is zeta = 2 zeta'; the authors' code has zeta. Noise
    enters neither by its size nor by its law. The norm is each sample's own.
    """

    zeta: float = 1.0
    grid: Grid = field(default_factory=Angle)

    @torch.no_grad()
    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        self.check(measurement)
        x, y = begin(denoiser, measurement, y, n, noise)
        times = falling(self.grid, denoiser.process, steps).tolist()
        for k, (t, s) in enumerate(itertools.pairwise(times)):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                belief = denoiser(leaf, t)
                gap = flat(y - measurement.forward(belief.mean)).norm(dim=1).sum()
                slope = torch.autograd.grad(gap, leaf)[0]
            fraction = None if belief.fraction is None else belief.fraction.detach()
            belief = TensorPosterior(belief.mean.detach(), fraction)
            if on_step is not None:
                on_step(Step(k, steps, t, x, belief.mean))
            x = denoiser.process.bridge(x, belief, t, s, noise.at("bridge", k)) - self.zeta * slope
            x = self.settle(x, measurement, y, *denoiser.process.schedule.alpha_sigma(s), noise.at("settle", k))
        return x

    def settle(
        self, x: Tensor, measurement: Measurement, y: Tensor, alpha: Tensor, sigma: Tensor, noise: Noise
    ) -> Tensor:
        """The state to go on with from x_s, at the level alpha, sigma."""
        return x


@kind("posterior.MCG")
@dataclass(frozen=True, kw_only=True)
class MCG(StepDPS):
    """`StepDPS`, and then A x_s is made alpha_s y + sigma_s A eps. Chung et al. 2022, arXiv:2206.00941, Eq. 14 and 15.

    y is taken as free of noise, and the output agrees with it exactly.
    """

    def check(self, measurement):
        needs_linear(self, measurement, gaussian=False)

    def settle(self, x, measurement, y, alpha, sigma, noise):
        level = float(alpha) * y + float(sigma) * measurement.forward(noise.normal(x))
        return x + measurement.pinv(level - measurement.forward(x))
