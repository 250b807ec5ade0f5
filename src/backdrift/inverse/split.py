"""Posterior samplers that take turns: the prior by a diffusion, the likelihood by itself, then the next level.

Given a Gaussian belief about x_0, N(c, v I), and y, x_0 can be drawn: exactly where A is linear with Gaussian noise, by
Langevin steps that a Metropolis test keeps exact otherwise. What the two samplers here put in place of the belief:

    DAPS        p(x_0 | x_t), with c the end of the flow through x_t and v by rule; then x_s is x_0 noised anew. Exact
                at any number of steps where the belief is: on round Gaussians, with one evaluation for c
    SplitGibbs  a coupling of x_0 to a copy, v = rho^2: x given the copy is the prior's own diffusion from the level
                rho, the copy given x and y is the draw above. With mixing, x_0 has the posterior of noise
                Gamma + rho^2 A A^T, exactly; as rho falls that is the posterior, and mixing dies
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.inverse.guided import round_variance
from backdrift.inverse.measurement import LinearMeasurement, Measurement
from backdrift.inverse.noise import GaussianNoise
from backdrift.inverse.sampler import PosteriorSampler, begin, falling, needs_gradient
from backdrift.noise import Noise
from backdrift.posterior import expand, flat
from backdrift.sample.expsde import SDE2M
from backdrift.sample.grids import Angle, Grid
from backdrift.sample.plan import Step
from backdrift.sample.sde import DDIM
from backdrift.sample.solver import Sampler


@kind("posterior.DAPS")
@dataclass(frozen=True, kw_only=True)
class DAPS(PosteriorSampler):
    """x_t to a point by the flow, x_0 near it given y, then noised to s. Zhang et al. 2024, arXiv:2407.01521, Alg. 1.

    inner: evaluations of the flow from each level; steps / inner levels are made. With 1 the point is E[x_0 | x_t], the
    belief's own mean; theirs is 5, whose point is itself a draw, so that draws spread too far. prior_std: the belief's
    variance is that of a round prior of this standard deviation; None is theirs, sigma^2 / alpha^2, which in directions
    that A does not see doubles the noise. langevin: steps for x_0 where it cannot be drawn exactly.
    """

    inner: int = 1
    prior_std: float | None = 1.0
    langevin: int = 100
    solver: Sampler = field(default_factory=DDIM)
    grid: Grid = field(default_factory=Angle)

    def __post_init__(self):
        if self.inner < 1 or self.langevin < 1:
            raise UserError(f"DAPS needs inner and langevin of at least 1, not {self.inner} and {self.langevin}.")

    def check(self, measurement):
        needs_gradient(self, measurement)

    @torch.no_grad()
    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        self.check(measurement)
        x, y = begin(denoiser, measurement, y, n, noise)
        schedule, levels = denoiser.process.schedule, max(1, steps // self.inner)
        tell = Counted(levels * self.inner, on_step)
        for k, (t, s) in enumerate(zip(*ends(falling(self.grid, denoiser.process, levels)), strict=True)):
            at = noise.at("level", k)
            centre = descend(denoiser, x, t, self.inner, self.solver, self.grid, at.at("flow"), tell)
            alpha, sigma = schedule.alpha_sigma(t)
            variance = round_variance(self.prior_std, alpha, sigma).expand(n).to(x)
            x0 = near(measurement, y, centre, variance, self.langevin, at.at("near"))
            x = denoiser.process.corrupt(x0, s, at.at("again")) if s > 0 else x0
        return x


@kind("posterior.SplitGibbs")
@dataclass(frozen=True, kw_only=True)
class SplitGibbs(PosteriorSampler):
    """Gibbs sampling of p(x) p(y | z) N(z; x, rho^2 I), PnP-DM. Wu et al. 2024, arXiv:2405.18782, Algorithm 1.

    first, last: rho falls from one to the other, geometrically over the first half of the rounds, and stays. inner:
    evaluations of the diffusion from rho to the data; steps / inner rounds are made. solver: a stochastic one, or x
    would not be drawn but decided by z. langevin: as for `DAPS`.
    """

    first: float = 1.0
    last: float = 0.1
    inner: int = 10
    langevin: int = 100
    solver: Sampler = field(default_factory=SDE2M)
    grid: Grid = field(default_factory=Angle)
    follows: ClassVar[bool] = False

    def __post_init__(self):
        if not (self.first >= self.last > 0 and self.inner >= 1 and self.langevin >= 1):
            raise UserError("SplitGibbs needs first >= last > 0, and inner and langevin of at least 1.")

    def check(self, measurement):
        needs_gradient(self, measurement)

    def width(self, k: int, rounds: int) -> float:
        """rho in round k."""
        return self.first * (self.last / self.first) ** min(1.0, k / max(1, rounds // 2))

    @torch.no_grad()
    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        self.check(measurement)
        x, y = begin(denoiser, measurement, y, n, noise)
        schedule, rounds = denoiser.process.schedule, max(1, steps // self.inner)
        tell = Counted(rounds * self.inner, on_step)
        # the first x is a denoised pure noise: near the data's mean
        x = denoiser(x, float(falling(self.grid, denoiser.process, 1)[0])).mean
        for k in range(rounds):
            rho, at = self.width(k, rounds), noise.at("round", k)
            z = near(measurement, y, x, torch.full((n,), rho**2).to(x), self.langevin, at.at("copy"))
            t = float(schedule.time(torch.tensor(-2 * math.log(rho), dtype=torch.float64)).clamp(1e-6, 1))
            # z = x + rho eps is a state of the process, in units of alpha
            state = z * float(schedule.alpha_sigma(t)[0])
            x = descend(denoiser, state, t, self.inner, self.solver, self.grid, at.at("prior"), tell)
        return x


class Counted:
    """`on_step` told of several runs in a row as of one."""

    def __init__(self, total: int, on_step: Callable[[Step], None] | None):
        self.done, self.total, self.on_step = 0, total, on_step

    def __call__(self, step: Step) -> None:
        if self.on_step is not None:
            self.on_step(step._replace(n=self.done, total=self.total))
        self.done += 1


def ends(times: Tensor) -> tuple[list[float], list[float]]:
    """The starts and the ends of the steps of a grid."""
    return times[:-1].tolist(), times[1:].tolist()


def descend(
    denoiser: Denoiser, x: Tensor, t: float, steps: int, solver: Sampler, grid: Grid, noise: Noise, tell: Counted
) -> Tensor:
    """From x at time t to data, in `steps` evaluations."""
    schedule = denoiser.process.schedule
    solver, count = solver.budget(steps, schedule, t)
    return solver.run(denoiser, x, grid.times(schedule, count, t), None, noise, tell)


def near(measurement: Measurement, y: Tensor, centre: Tensor, variance: Tensor, langevin: int, noise: Noise) -> Tensor:
    """A draw of x_0 ~ N(centre, variance I) p(y | x_0), (B, *event). variance: (B,)."""
    std = expand(variance.sqrt(), centre)
    if isinstance(measurement, LinearMeasurement) and isinstance(measurement.noise, GaussianNoise):
        # the mean of the posterior from a prior and a y that are drawn about their own has the posterior's law
        x = centre + std * noise.at("x").normal(centre)
        clean = y.expand(len(x), *y.shape[1:])
        return measurement.prox(x, clean + measurement.variance(clean).sqrt() * noise.at("y").normal(clean), variance)

    def log_density(x: Tensor) -> Tensor:
        return measurement.log_likelihood(x, y).double() - flat((x - centre) / std).double().square().sum(1) / 2

    return metropolis(log_density, centre, std, langevin, noise)


def metropolis(log_density: Callable[[Tensor], Tensor], x: Tensor, std: Tensor, steps: int, noise: Noise) -> Tensor:
    """`steps` Langevin proposals from x, each taken or not by Metropolis' rule.

    std: the scale of the first step, (B, 1, ..). In the first half of the steps each sample's size is driven to where
    57 % are taken; in the second it is kept, and the density is left exactly as it is. Roberts and Rosenthal 1998,
    doi:10.1111/1467-9868.00123.
    """

    def looked(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = log_density(x)
            return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    # half a squared step, in units of std^2: a small start, since a likelihood may be far narrower than the prior
    log_size = torch.full((len(x),), math.log(1e-3), dtype=torch.float64, device=x.device)
    value, slope = looked(x)
    for k in range(steps):
        size = expand(log_size.exp(), x) * std**2
        draw = noise.at("draw", k).normal(x)
        move = size * slope + (2 * size).sqrt() * draw
        new_value, new_slope = looked(x + move)
        back = move + size * new_slope
        # log q(x | x') - log q(x' | x)
        ratio = flat(draw.square()).double().sum(1) / 2 - flat(back.square() / (4 * size)).double().sum(1)
        log_accept = (new_value - value + ratio).nan_to_num(nan=-math.inf)
        taken = noise.at("test", k).uniform(log_accept).log() < log_accept
        x = torch.where(expand(taken, x).bool(), x + move, x)
        value, slope = torch.where(taken, new_value, value), torch.where(expand(taken, x).bool(), new_slope, slope)
        if k < steps // 2:
            log_size = log_size + (log_accept.clamp_max(0).exp() - 0.574) * max(0.2, 4 / (k + 1))
    return x
