"""Posterior samplers that correct the mean D = E[x_0 | x_t] towards y without the network's Jacobian.

    D <- argmin |y - A x|^2 + ... |x - D|^2,  or a step towards it, or the nearest x that agrees with y

They cost one evaluation a step and no pass backwards. What the prior knows of the way x_0's parts hang together enters
through D alone. Any solver runs on the corrected mean.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.guide.gradient import first_informative
from backdrift.inverse.measurement import Measurement
from backdrift.inverse.sampler import Steered, needs_linear
from backdrift.posterior import TensorPosterior
from backdrift.process.gaussian import Gaussian
from backdrift.sample.sde import Jump
from backdrift.sample.solver import Sampler


@dataclass(frozen=True)
class Guess:
    """What a correction sees. mean: D (B, *event). alpha, sigma: (B,) in its dtype. y: (1 or B, *shape)."""

    mean: Tensor
    alpha: Tensor
    sigma: Tensor
    measurement: Measurement
    y: Tensor

    @property
    def residual(self) -> Tensor:
        """y - A(D), (B, *shape)."""
        return self.y - self.measurement.forward(self.mean)


@dataclass(frozen=True, kw_only=True)
class Correction(Steered):
    """A posterior sampler that replaces the mean, and a solver that runs on what it puts there."""

    @abstractmethod
    def correct(self, at: Guess) -> Tensor:
        """The mean to go on with, (B, *event)."""

    def guide(self, denoiser, measurement, y, noise=None):
        self.check(measurement)
        return Corrected(denoiser, measurement, y, self)


class Corrected(Denoiser):
    """`denoiser` with its mean corrected by a rule. Raises `UserError` where the three do not fit each other."""

    def __init__(self, denoiser: Denoiser, measurement: Measurement, y: Tensor, rule: Correction):
        super().__init__()
        if not isinstance(denoiser.process, Gaussian):
            raise UserError(f"Posterior samplers serve a Gaussian process, not {type(denoiser.process).__name__}.")
        measurement.check_events(denoiser.event_shape)
        self.denoiser, self.process, self.event_shape = denoiser, denoiser.process, denoiser.event_shape
        self.measurement, self.rule, self.y = measurement, rule, measurement.batched(y)
        self.first = first_informative(self.process)

    def forward(self, xt, t, cond=None):
        t = torch.as_tensor(t, dtype=torch.float64).clamp_max(self.first)
        alpha, sigma = (value.expand(len(xt)).to(xt) for value in self.process.schedule.alpha_sigma(t))
        belief = self.denoiser(xt, t, cond)
        guess = Guess(belief.mean, alpha, sigma, self.measurement, self.y.to(xt))
        return TensorPosterior(self.rule.correct(guess), belief.fraction)


@kind("posterior.MPGD")
@dataclass(frozen=True, kw_only=True)
class MPGD(Correction):
    """D <- D - rate grad_D |y - A(D)|^2, one step without a Jacobian. He et al. 2023, arXiv:2311.16424, Eq. 6.

    rate: the step is the posterior: 0.5 goes all the way to y where A A^T = I. Any differentiable A; the noise's size
    does not enter.
    """

    rate: float = 0.5

    def correct(self, at):
        return at.mean + 2 * self.rate * at.measurement.vjp(at.mean, at.residual)


@kind("posterior.DiffPIR")
@dataclass(frozen=True, kw_only=True)
class DiffPIR(Correction):
    """D <- argmin |y - A x|^2_Gamma + strength (alpha / sigma)^2 |x - D|^2. Zhu et al. 2023, arXiv:2305.08995, Eq. 13.

    That is the mean of a posterior whose prior is N(D, sigma^2 / (alpha^2 strength) I). strength: their lambda. solver:
    `Jump(gamma)`, which mixes fresh noise with the old one by their zeta = gamma^2.
    """

    strength: float = 7.0
    solver: Sampler = field(default_factory=lambda: Jump(math.sqrt(0.3)))

    def __post_init__(self):
        if not self.strength > 0:
            raise UserError(f"DiffPIR's strength is positive, not {self.strength}.")

    def check(self, measurement):
        needs_linear(self, measurement)

    def correct(self, at):
        return at.measurement.prox(at.mean, at.y, at.sigma**2 / (at.alpha**2 * self.strength))
