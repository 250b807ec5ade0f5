"""Posterior samplers that guide: the denoiser's mean is moved towards the measurement, and any solver runs on it.

By Tweedie's formula the posterior's denoiser is the prior's, moved along grad log p(y | x_t):

    E[x_0 | x_t, y] = E[x_0 | x_t] + (sigma^2 / alpha) grad log p(y | x_t),
    p(y | x_t) = int p(y | x_0) p(x_0 | x_t) dx_0.

No network knows p(x_0 | x_t), so every method here puts an approximation q(x_0 | x_t) into the integral: a point, a
Gaussian with a variance by rule, or one with the true covariance. With D = E[x_0 | x_t], J its Jacobian and
V = (sigma^2 / alpha) J the covariance of p(x_0 | x_t) (exactly), and R = y - A(D):

    DPS     q = a point           grad = J^T A^T Gamma^-1 R
    PiGDM   q = N(D, r^2 I)       grad = J^T A^T (r^2 A A^T + Gamma)^-1 R
    MMPS    q = N(D, V)           grad = J^T A^T (A V A^T + Gamma)^-1 R         (by conjugate gradients)
    TMPD    the same with the row sums of A V A^T in place of the matrix

J V-weighted terms that come from V's own dependence on x_t are dropped by all of them. Which of these errors matters,
and where, is what `backdrift.trust` measures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.exact.denoiser import ExactDenoiser
from backdrift.guide.gradient import Moved
from backdrift.inverse.measurement import LinearMeasurement, Measurement
from backdrift.inverse.solve import conjugate_gradients
from backdrift.noise import Noise
from backdrift.posterior import expand
from backdrift.sample import sample
from backdrift.sample.grids import Angle, Grid
from backdrift.sample.plan import Step
from backdrift.sample.sde import DDIM
from backdrift.sample.solver import Sampler


@dataclass(frozen=True)
class Estimate:
    """What a rule sees in one step.

    x: x_t (B, *event). mean: D(x_t), with the graph back to x. alpha, sigma: (B,) in x's dtype. y: (1 or B, *shape).
    """

    x: Tensor
    mean: Tensor
    alpha: Tensor
    sigma: Tensor
    measurement: Measurement
    y: Tensor

    def pull(self, v: Tensor) -> Tensor:
        """J^T v, (B, *event), J = dD / dx_t."""
        return torch.autograd.grad(self.mean, self.x, v, retain_graph=True)[0]

    @property
    def point(self) -> Tensor:
        """D without its graph."""
        return self.mean.detach()

    @property
    def residual(self) -> Tensor:
        """y - A(D), (B, *shape), without a graph."""
        return self.y - self.measurement.forward(self.point)


class PosteriorSampler(ABC):
    """Draws from p(x_0 | y); subclasses are frozen dataclasses. No sample depends on its neighbours."""

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        measurement: Measurement,
        y: Tensor,
        n: int,
        *,
        steps: int,
        noise: Noise,
        on_step: Callable[[Step], None] | None = None,
    ) -> Tensor:
        """n draws, (n, *event), for y (*shape); or one draw for each of n measurements, y (n, *shape).

        denoiser: of the prior, on a Gaussian process. steps: calls of it, guided. noise: of n samples.

        Raises `UserError` where the measurement does not fit the denoiser, y, or the method.
        """


@dataclass(frozen=True, kw_only=True)
class Guidance(PosteriorSampler):
    """A posterior sampler that is a rule for the guided mean, and a solver that runs on it.

    solver, grid: stochastic by default (the ancestral sampler, DDIM with eta = 1, on the angle grid): a deterministic
    one has no noise to forget an error of the guidance.
    """

    solver: Sampler = field(default_factory=lambda: DDIM(eta=1.0))
    grid: Grid = field(default_factory=Angle)

    @abstractmethod
    def gradient(self, at: Estimate) -> Tensor:
        """grad_{x_t} log p(y | x_t) as this method has it, (B, *event)."""

    def check(self, measurement: Measurement) -> None:
        """Raises `UserError` for a measurement that this method cannot serve."""

    def guide(self, denoiser: Denoiser, measurement: Measurement, y: Tensor) -> Denoiser:
        """The approximate posterior's denoiser, for any solver and plan. Raises as the call does."""
        self.check(measurement)
        return Guided(denoiser, measurement, y, self)

    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        guided = self.guide(denoiser, measurement, y)
        x1 = start(denoiser, measurement, n, noise)
        return sample(
            guided,
            x1,
            solver=self.solver,
            grid=self.grid,
            steps=steps,
            index=noise.index,
            seed=noise.seed,
            on_step=on_step,
        )


class Guided(Moved):
    """`denoiser` moved towards y by a rule. Raises `UserError` where the three do not fit each other."""

    def __init__(self, denoiser: Denoiser, measurement: Measurement, y: Tensor, rule: Guidance):
        super().__init__(denoiser)
        measurement.check_events(denoiser.event_shape)
        self.measurement, self.rule, self.y = measurement, rule, measurement.batched(y)

    def gradient(self, x, mean, t, cond):
        if len(self.y) not in (1, len(x)):
            raise UserError(f"There are {len(self.y)} measurements for a batch of {len(x)}.")
        alpha, sigma = (value.expand(len(x)).to(x) for value in self.process.schedule.alpha_sigma(t))
        return self.rule.gradient(Estimate(x, mean, alpha, sigma, self.measurement, self.y.to(x)))


@dataclass(frozen=True, kw_only=True)
class DPS(Guidance):
    """q is a point: grad log p(y | D(x_t)), scaled. Any smooth likelihood. Chung et al. 2023, arXiv:2209.14687, Eq. 11.

    strength: 1 is the likelihood's own ("sigma" convention). It ignores the spread of p(x_0 | x_t), and so pulls too
    hard early.
    """

    strength: float = 1.0

    def check(self, measurement):
        if not measurement.noise.smooth:
            raise UserError(f"DPS needs a likelihood with a gradient, and {type(measurement.noise).__name__} has none.")

    def gradient(self, at):
        total = at.measurement.log_likelihood(at.mean, at.y).sum()
        return self.strength * torch.autograd.grad(total, at.x)[0]


@dataclass(frozen=True, kw_only=True)
class PiGDM(Guidance):
    """q = N(D, r^2 I), with r^2 = sigma^2 s^2 / (alpha^2 s^2 + sigma^2): the law of a prior of variance s^2 per pixel.

    prior_std: s; None is a flat prior, r^2 = sigma^2 / alpha^2. The published method takes 1 for data of unit variance.
    Song et al. 2023, openreview 9_gsMA8MRKQ, Eq. 7 and 8.
    """

    prior_std: float | None = 1.0

    def check(self, measurement):
        _needs_linear(self, measurement)

    def spread(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """r^2, (B,)."""
        if self.prior_std is None:
            return sigma**2 / alpha**2
        return sigma**2 * self.prior_std**2 / (alpha**2 * self.prior_std**2 + sigma**2)

    def gradient(self, at):
        return at.pull(at.measurement.adjoint(at.measurement.solve(at.residual, self.spread(at.alpha, at.sigma))))


@dataclass(frozen=True, kw_only=True)
class MMPS(Guidance):
    """q = N(D, V) with the true covariance V = (sigma^2 / alpha) J, and the system in A V A^T by conjugate gradients.

    iterations: of the solver; each is one more pass backwards through the network. Rozet et al. 2024, arXiv:2405.13712,
    section 4.2.
    """

    iterations: int = 5

    def check(self, measurement):
        _needs_linear(self, measurement)

    def gradient(self, at):
        scale = expand(at.sigma**2 / at.alpha, at.x)
        residual = at.residual
        variance = at.measurement.variance(residual)

        def product(v: Tensor) -> Tensor:
            return at.measurement.forward(scale * at.pull(at.measurement.adjoint(v))) + variance * v

        return at.pull(at.measurement.adjoint(conjugate_gradients(product, residual, self.iterations)))


@dataclass(frozen=True, kw_only=True)
class TMPD(Guidance):
    """q = N(D, V), with the row sums of A V A^T, A V A^T 1, as a diagonal. Boys et al. 2023, arXiv:2310.06721, Eq. 13.

    Negative row sums, which a covariance may have, count as 0.
    """

    def check(self, measurement):
        _needs_linear(self, measurement)

    def gradient(self, at):
        scale = expand(at.sigma**2 / at.alpha, at.x)
        residual = at.residual
        ones = torch.ones_like(residual)
        rows = at.measurement.forward(scale * at.pull(at.measurement.adjoint(ones)))
        return at.pull(at.measurement.adjoint(residual / (rows.clamp_min(0) + at.measurement.variance(residual))))


@dataclass(frozen=True, kw_only=True)
class Exact(PosteriorSampler):
    """The exact posterior's own denoiser, for exact priors: what every other sampler is measured against.

    solver, grid: as for the samplers that guide. None draws independent samples from the posterior itself.
    """

    solver: Sampler | None = None
    grid: Grid = field(default_factory=Angle)

    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        if not isinstance(denoiser, ExactDenoiser):
            raise UserError("The exact posterior is known for exact priors (bd.exact) only, not for a network.")
        posterior = denoiser.distribution.given(measurement, measurement.batched(y)[0])
        if self.solver is None:
            return posterior.draw(n, noise.seed)
        x1 = start(denoiser, measurement, n, noise)
        guided = posterior.denoiser(denoiser.process)
        return sample(
            guided,
            x1,
            solver=self.solver,
            grid=self.grid,
            steps=steps,
            index=noise.index,
            seed=noise.seed,
            on_step=on_step,
        )


def start(denoiser: Denoiser, measurement: Measurement, n: int, noise: Noise) -> Tensor:
    """The states at t = 1 of n samples, float64 for exact denoisers in float64, else float32."""
    dtype = denoiser.distribution.dtype if isinstance(denoiser, ExactDenoiser) else torch.float32
    like = torch.zeros(n, *denoiser.event_shape, dtype=dtype)
    return denoiser.process.prior(like, noise.at("prior"))


def _needs_linear(rule: Guidance, measurement: Measurement) -> None:
    if not isinstance(measurement, LinearMeasurement):
        raise UserError(f"{type(rule).__name__} needs a linear measurement; DPS and LGD serve any smooth one.")
    measurement.variance(torch.zeros(1, *measurement.shape))
