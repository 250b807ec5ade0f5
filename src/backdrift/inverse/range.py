"""Posterior samplers by what A sees and what it does not: the part of x in A's range is set, the rest is sampled.

    Replacement  the seen part of x_t is that of y, noised to the same level           (no denoiser asked)
    RePaint      the same, each stretch repeated, so that the rest may adapt
    DDNM         the seen part of E[x_0 | x_t] is A^+ y
    DDRM         each singular direction has a Gaussian step of its own, by how its noise compares with the level's

All take what y says of a direction as said of that direction alone: what the prior makes of it in others comes through
the denoiser at this one level. DDRM alone knows that y is noisy. Kawar et al. 2022, arXiv:2201.11793; Wang et al.
2022, arXiv:2212.00490.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from backdrift.config import kind
from backdrift.edit.replace import Replacement as Replacing
from backdrift.errors import UserError
from backdrift.inverse.corrected import Correction
from backdrift.inverse.noise import GaussianNoise
from backdrift.inverse.sampler import PosteriorSampler, begin, drawn, falling, needs_linear
from backdrift.sample.grids import Angle, Grid
from backdrift.sample.plan import Step

NOISELESS = 1e-5  # noise of a direction, in the picture's units, that DDRM takes for none


@kind("posterior.Replacement")
@dataclass(frozen=True, kw_only=True)
class Replacement(PosteriorSampler):
    """Ancestral steps; after each, A x_s is made alpha_s y + sigma_s A eps. Song et al. 2021, arXiv:2011.13456, I.2.

    rounds, jump: more than one round is RePaint (see `edit.Replacement`). y is taken as free of noise.
    """

    rounds: int = 1
    jump: int = 1
    grid: Grid = field(default_factory=Angle)

    def check(self, measurement):
        needs_linear(self, measurement, gaussian=False)

    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        self.check(measurement)
        x1, y = begin(denoiser, measurement, y, n, noise)
        solver = Replacing(measurement.pinv(y), measurement.seen, self.rounds, self.jump)
        return drawn(denoiser, x1, solver, self.grid, steps, noise, on_step)


@kind("posterior.DDNM")
@dataclass(frozen=True, kw_only=True)
class DDNM(Correction):
    """D <- D + A^+ (y - A D): the mean agrees with y. Wang et al. 2022, arXiv:2212.00490, Eq. 13.

    y is taken as free of noise, and the output agrees with it exactly.
    """

    def check(self, measurement):
        needs_linear(self, measurement, gaussian=False)

    def correct(self, at):
        return at.mean + at.measurement.pinv(at.residual)


@kind("posterior.DDRM")
@dataclass(frozen=True, kw_only=True)
class DDRM(PosteriorSampler):
    """A Gaussian step of its own for each singular direction. Kawar et al. 2022, arXiv:2201.11793, Eq. 4 and 5.

    In their units z = x_t / alpha with noise rho = sigma / alpha, and z_i, D_i and ybar_i = (U^T y)_i / s_i in the
    direction i, where y has the noise f_i = std / s_i:

        s_i = 0:      N(D_i + sqrt(1 - eta^2) rho_s (z_i - D_i) / rho_t, eta^2 rho_s^2)
        rho_s < f_i:  N(D_i + sqrt(1 - eta^2) rho_s (ybar_i - D_i) / f_i, eta^2 rho_s^2)
        else:         N((1 - eta_b) D_i + eta_b ybar_i, rho_s^2 - eta_b^2 f_i^2)

    Noise f_i below 1e-5 counts as none; such directions of the output agree with y. Needs one standard deviation for
    all of y, and A's singular values.
    """

    eta: float = 0.85
    eta_b: float = 1.0
    grid: Grid = field(default_factory=Angle)

    def __post_init__(self):
        if not (0 <= self.eta <= 1 and 0 <= self.eta_b <= 1):
            raise UserError(f"DDRM takes eta and eta_b in [0, 1], not {self.eta} and {self.eta_b}.")

    def check(self, measurement):
        needs_linear(self, measurement)
        if not (isinstance(measurement.noise, GaussianNoise) and measurement.noise.std.ndim == 0):
            raise UserError("DDRM needs Gaussian noise of one standard deviation for all of y.")

    @torch.no_grad()
    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        self.check(measurement)
        x1, y = begin(denoiser, measurement, y, n, noise)
        svd, schedule = measurement.svd(), denoiser.process.schedule
        floor = (float(measurement.noise.std) / svd.values).to(x1)
        floor = floor.where(floor > NOISELESS, 0.0)
        target = svd.left(y) / svd.values.to(x1)
        times = falling(self.grid, denoiser.process, steps).tolist()
        levels = [float(sigma / alpha) for alpha, sigma in map(schedule.alpha_sigma, times)]

        # where y knows a direction better than the first level does, the start is ybar with the rest of the noise
        z = x1 * (levels[0] / float(schedule.alpha_sigma(1.0)[1]))
        seen = svd.right(z)
        known = target + (1 - (floor / levels[0]) ** 2).clamp_min(0).sqrt() * seen
        z = z + svd.back(torch.where(floor < levels[0], known - seen, 0.0))
        for k, t in enumerate(times[:-1]):
            x = float(schedule.alpha_sigma(t)[0]) * z
            D = denoiser(x, t).mean
            if on_step is not None:
                on_step(Step(k, steps, t, x, D))
            rho, d, draw = levels[k + 1], svd.right(D), noise.at("ddrm", k).normal(z)
            c, keep = svd.right(draw), math.sqrt(1 - self.eta**2)
            blind = D + keep * rho / levels[k] * (z - D) + self.eta * rho * draw
            weak = d + keep * rho * (target - d) / floor.clamp_min(NOISELESS) + self.eta * rho * c
            spread = (rho**2 - (self.eta_b * floor) ** 2).clamp_min(0).sqrt()
            strong = (1 - self.eta_b) * d + self.eta_b * target + spread * c
            z = blind + svd.back(torch.where(rho < floor, weak, strong) - svd.right(blind))
        return z
