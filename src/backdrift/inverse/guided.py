"""Posterior samplers that guide: the denoiser's mean is moved along a gradient, and any solver runs on it.

By Tweedie's formula the posterior's denoiser is the prior's, moved along grad log p(y | x_t):

    E[x_0 | x_t, y] = E[x_0 | x_t] + (sigma^2 / alpha) grad log p(y | x_t),
    p(y | x_t) = int p(y | x_0) p(x_0 | x_t) dx_0.

No network knows p(x_0 | x_t), so every method here puts an approximation q(x_0 | x_t) into the integral: a point, a
Gaussian with a variance by rule, or one with the true covariance. With D = E[x_0 | x_t], J its Jacobian and
V = (sigma^2 / alpha) J the covariance of p(x_0 | x_t) (exactly), and R = y - A(D):

    ScoreALD  q = N(x_t / alpha, c I)  grad = A^T (y - A x_t / alpha) / (Gamma + c) / alpha
    DPS       q = a point              grad = J^T A^T Gamma^-1 R
    LGD       q = N(D, r^2 I)          grad of log mean_j p(y | D + r z_j), for any A
    PiGDM     q = N(D, r^2 I)          grad = J^T A^T (r^2 A A^T + Gamma)^-1 R
    MMPS      q = N(D, V)              grad = J^T A^T (A V A^T + Gamma)^-1 R         (by conjugate gradients)
    TMPD      the same, with the row sums of A V A^T in place of the matrix, or with the matrix itself

J V-weighted terms that come from V's own dependence on x_t are dropped by all of them. Which of these errors matters,
and where, is what `backdrift.trust` measures.
"""

from __future__ import annotations

import math
import struct
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.guide.gradient import Moved
from backdrift.inverse.measurement import Measurement
from backdrift.inverse.sampler import Steered, needs_gradient, needs_linear
from backdrift.inverse.solve import carried_gradients
from backdrift.noise import Noise
from backdrift.posterior import expand, flat

ROWS = 512  # numbers of y up to which TMPD may build a matrix


@dataclass(frozen=True)
class Estimate:
    """What a rule sees in one step.

    x: x_t (B, *event). mean: D(x_t), with the graph back to x. alpha, sigma: (B,) in x's dtype. y: (1 or B, *shape).
    noise: of these samples at this time.
    """

    x: Tensor
    mean: Tensor
    alpha: Tensor
    sigma: Tensor
    measurement: Measurement
    y: Tensor
    noise: Noise

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


@dataclass(frozen=True, kw_only=True)
class Guidance(Steered):
    """A posterior sampler that is a gradient in x_t, and a solver that runs on the mean moved along it."""

    @abstractmethod
    def gradient(self, at: Estimate) -> Tensor:
        """grad_{x_t} log p(y | x_t) as this method has it, (B, *event)."""

    def log_twist(self, at: Estimate) -> Tensor:
        """log p(y | x_t) as this method has it, (B,), up to what is the same for all x_t. `UserError` where unknown."""
        raise UserError(f"{type(self).__name__} states no p(y | x_t); let DPS or PiGDM guide the particles.")

    def guide(self, denoiser, measurement, y, noise=None):
        self.check(measurement)
        return Guided(denoiser, measurement, y, self, noise)


class Guided(Moved):
    """`denoiser` moved towards y by a rule. Raises `UserError` where the three do not fit each other."""

    def __init__(
        self, denoiser: Denoiser, measurement: Measurement, y: Tensor, rule: Guidance, noise: Noise | None = None
    ):
        super().__init__(denoiser)
        measurement.check_events(denoiser.event_shape)
        self.measurement, self.rule, self.y, self.noise = measurement, rule, measurement.batched(y), noise

    def gradient(self, x, mean, t, cond):
        return self.rule.gradient(self.estimate(x, mean, t))

    def estimate(self, x: Tensor, mean: Tensor, t: float | Tensor) -> Estimate:
        """What the rule sees. Raises `UserError` where there are neither one nor B measurements."""
        if len(self.y) not in (1, len(x)):
            raise UserError(f"There are {len(self.y)} measurements for a batch of {len(x)}.")
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = (value.expand(len(x)).to(x) for value in self.process.schedule.alpha_sigma(t))
        noise = Noise.of(0, len(x)) if self.noise is None else self.noise
        # a rule that draws has fresh noise at each time, by the bits of the number
        (bits,) = struct.unpack("<q", struct.pack("<d", float(t.flatten()[0])))
        return Estimate(x, mean, alpha, sigma, self.measurement, self.y.to(x), noise.at(bits))


@kind("posterior.ScoreALD")
@dataclass(frozen=True, kw_only=True)
class ScoreALD(Guidance):
    """p(y | x_t) = N(y; A x_t / alpha, Gamma + c I): the state is taken for x_0 seen with noise, without the denoiser.

    c = (spread sigma / alpha)^2; with spread = 1 it is exact for a flat prior where A A^T = I. Jalal et al. 2021,
    arXiv:2108.01368, Eq. 5, here on the reverse SDE and not on annealed Langevin dynamics.
    """

    spread: float = 1.0

    def check(self, measurement):
        needs_linear(self, measurement)

    def gradient(self, at):
        alpha = expand(at.alpha, at.x)
        residual = at.y - at.measurement.forward(at.x.detach() / alpha)
        width = expand((self.spread * at.sigma / at.alpha) ** 2, residual)
        return at.measurement.adjoint(residual / (at.measurement.variance(residual) + width)) / alpha


@kind("posterior.DPS")
@dataclass(frozen=True, kw_only=True)
class DPS(Guidance):
    """q is a point: grad log p(y | D(x_t)), scaled. Any smooth likelihood. Chung et al. 2023, arXiv:2209.14687, Eq. 11.

    strength: 1 is the likelihood's own ("sigma" convention). It ignores the spread of p(x_0 | x_t), and so pulls too
    hard early. What others call DPS: `NormDPS` and `StepDPS`, neither of which is the gradient of a likelihood.
    """

    strength: float = 1.0

    def check(self, measurement):
        needs_gradient(self, measurement)

    def gradient(self, at):
        total = at.measurement.log_likelihood(at.mean, at.y).sum()
        return self.strength * torch.autograd.grad(total, at.x)[0]

    def log_twist(self, at):
        return self.strength * at.measurement.log_likelihood(at.point, at.y).double()


@kind("posterior.NormDPS")
@dataclass(frozen=True, kw_only=True)
class NormDPS(Guidance):
    """DPS with a gradient of the norm in place of the likelihood: the score moves by -zeta grad |y - A(D)|.

    It knows neither the noise's size nor its law; unlike `StepDPS` its strength does not grow with the steps. The norm
    is each sample's own. Two libraries have it: zeta = 2 zeta' for a step zeta' / |R| on the squared norm in the score,
    and zeta = lambda / (2 sqrt(m)) in deepinv, m being the size of y.
    """

    zeta: float = 1.0

    def gradient(self, at):
        gap = flat(at.y - at.measurement.forward(at.mean)).norm(dim=1).sum()
        return -self.zeta * torch.autograd.grad(gap, at.x)[0]


@dataclass(frozen=True, kw_only=True)
class Round(Guidance):
    """q = N(D, r^2 I), with r^2 = sigma^2 s^2 / (alpha^2 s^2 + sigma^2): the law of a prior of variance s^2 per pixel.

    prior_std: s; None is a flat prior, r^2 = sigma^2 / alpha^2.
    """

    prior_std: float | None = 1.0

    def spread(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """r^2, (B,)."""
        return round_variance(self.prior_std, alpha, sigma)


def round_variance(prior_std: float | None, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The variance of x_0 given x_t under a prior N(., prior_std^2 I); a flat one where None."""
    if prior_std is None:
        return sigma**2 / alpha**2
    return sigma**2 * prior_std**2 / (alpha**2 * prior_std**2 + sigma**2)


@kind("posterior.LGD")
@dataclass(frozen=True, kw_only=True)
class LGD(Round):
    """q = N(D, r^2 I) by Monte Carlo: grad log mean_j p(y | D + r z_j). Song et al. 2023 (LGD-MC), Eq. 8.

    draws: the number of z_j, in pairs of opposite signs; the log of a mean over few is biased. Any smooth likelihood.
    """

    draws: int = 8

    def __post_init__(self):
        if self.draws < 2 or self.draws % 2:
            raise UserError(f"LGD draws in pairs: an even number of at least 2, not {self.draws}.")

    def check(self, measurement):
        needs_gradient(self, measurement)

    def gradient(self, at):
        radius = expand(self.spread(at.alpha, at.sigma).sqrt(), at.x)
        half = [at.noise.at("lgd", j).normal(at.x) for j in range(self.draws // 2)]
        logs = [at.measurement.log_likelihood(at.mean + sign * radius * z, at.y) for z in half for sign in (1, -1)]
        return torch.autograd.grad(torch.stack(logs).logsumexp(0).sum(), at.x)[0]


@kind("posterior.PiGDM")
@dataclass(frozen=True, kw_only=True)
class PiGDM(Round):
    """q = N(D, r^2 I) in closed form: linear measurements with Gaussian noise.

    prior_std: the published method takes 1 for data of unit variance; others take None. Song et al. 2023, openreview
    9_gsMA8MRKQ, Eq. 7 and 8.
    """

    def check(self, measurement):
        needs_linear(self, measurement)

    def gradient(self, at):
        return at.pull(at.measurement.adjoint(at.measurement.solve(at.residual, self.spread(at.alpha, at.sigma))))

    def log_twist(self, at):
        residual = at.residual
        solved = at.measurement.solve(residual, self.spread(at.alpha, at.sigma))
        return -(flat(residual) * flat(solved)).double().sum(1) / 2


@kind("posterior.MMPS")
@dataclass(frozen=True, kw_only=True)
class MMPS(Guidance):
    """q = N(D, V) with the true covariance V = (sigma^2 / alpha) J, and the system in A V A^T by conjugate gradients.

    iterations: of the solver; each is one pass backwards through the network, and there are no others: J^T A^T of the
    solution is the same sum as the solution, over directions whose images the solver has already made. Rozet et al.
    2024, arXiv:2405.13712, section 4.2.
    """

    iterations: int = 5

    def __post_init__(self):
        if self.iterations < 1:
            raise UserError(f"MMPS needs at least 1 iteration of its solver, not {self.iterations}.")

    def check(self, measurement):
        needs_linear(self, measurement)

    def gradient(self, at):
        scale = expand(at.sigma**2 / at.alpha, at.x)
        residual = at.residual
        variance = at.measurement.variance(residual)

        def product(v: Tensor) -> tuple[Tensor, Tensor]:
            pulled = at.pull(at.measurement.adjoint(v))
            return at.measurement.forward(scale * pulled) + variance * v, pulled

        return carried_gradients(product, residual, self.iterations)


@kind("posterior.TMPD")
@dataclass(frozen=True, kw_only=True)
class TMPD(Guidance):
    """q = N(D, V), with the row sums of A V A^T, A V A^T 1, as a diagonal. Boys et al. 2023, arXiv:2310.06721, Eq. 13.

    Negative row sums, which a covariance may have, count as 0. full: the matrix itself, at one pass backwards for each
    number of y, of which there may be 512.
    """

    full: bool = False

    def check(self, measurement):
        needs_linear(self, measurement)
        if self.full and math.prod(measurement.shape) > ROWS:
            size = math.prod(measurement.shape)
            raise UserError(f"TMPD's full matrix is for at most {ROWS} numbers, and y has {size}; take MMPS.")

    def gradient(self, at):
        scale = expand(at.sigma**2 / at.alpha, at.x)
        residual = at.residual
        variance = at.measurement.variance(residual)

        def rows(v: Tensor) -> Tensor:
            return at.measurement.forward(scale * at.pull(at.measurement.adjoint(v)))

        if not self.full:
            return at.pull(at.measurement.adjoint(residual / (rows(torch.ones_like(residual)).clamp_min(0) + variance)))
        units = torch.eye(residual[0].numel()).to(residual).view(-1, 1, *residual.shape[1:])
        matrix = torch.stack([flat(rows(unit.expand_as(residual))) for unit in units], 2)
        # symmetric by theory, not for a network
        solved = torch.linalg.solve((matrix + matrix.mT) / 2 + torch.diag_embed(flat(variance)), flat(residual))
        return at.pull(at.measurement.adjoint(solved.view_as(residual)))
