"""Samplers that are not compiled beforehand: steps sized by an error tolerance, and a start in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.posterior import expand
from backdrift.process.gaussian import Gaussian
from backdrift.sample.multistep import Multistep
from backdrift.sample.plan import Step
from backdrift.sample.solver import Sampler, Solver


@kind("solver.AdaptiveRK")
@dataclass(frozen=True)
class AdaptiveRK(Sampler):
    """Bogacki and Shampine's embedded pair 3(2) on the probability-flow ODE, with steps sized for each sample.

    In the trigonometric gauge dz/dw = v, z = x / sqrt(alpha^2 + sigma^2), which is finite from pure noise on. A step is
    accepted where the difference of the two solutions is below atol + rtol |z| in root mean square over the sample, and
    the next one scaled by 0.9 (tolerance / difference)^(1/3), between 0.2 and 5 times. Every sample has its own times,
    so that it does not depend on its batch; one whose run is over is no longer evaluated. Bogacki and Shampine 1989.

    It refuses a budget: the tolerance decides how many evaluations are made (four for the first step of a sample, three
    for each further try), and the number of `steps` and the grid's inner times are not used. Ends at sigma = 0 are left
    at sigma / alpha = `floor`, from where D is returned.

    Raises `UserError` where a sample needs more than `most` tries.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    floor: float = 1e-3
    most: int = 10_000

    def __post_init__(self):
        if not (self.rtol >= 0 and self.atol > 0 and self.floor > 0):
            raise UserError("AdaptiveRK needs rtol >= 0, atol > 0 and floor > 0.")

    def budget(self, steps, schedule, start):
        return self, 1

    def run(self, denoiser, x1, times, cond=None, noise=None, on_step=None):
        if not isinstance(denoiser.process, Gaussian):
            raise UserError(f"AdaptiveRK serves a Gaussian process, not {type(denoiser.process).__name__}.")
        schedule = denoiser.process.schedule
        start, end = float(times[0]), float(times[-1])
        clean = float(schedule.alpha_sigma(end)[1]) == 0
        stop = math.atan(self.floor) if clean else float(schedule.angle(end))
        out = x1.clone()
        left = torch.arange(len(x1), device=x1.device)
        w = torch.full((len(x1),), float(schedule.angle(start)), dtype=torch.float64, device=x1.device)
        h = torch.full_like(w, 0.05 * (float(schedule.angle(start)) - stop))
        z, shown = x1 / float(torch.hypot(*schedule.alpha_sigma(start))), 0

        def rate(z: Tensor, w: Tensor, left: Tensor) -> Tensor:
            """v = dz/dw for the samples `left`."""
            nonlocal shown
            t = schedule.time_at_angle(w).clamp(0, 1)
            alpha, sigma = schedule.alpha_sigma(t)
            norm = torch.hypot(alpha, sigma)
            x = expand(norm, z) * z
            mean = denoiser(x, t, _part(cond, left, len(x1))).mean
            if on_step is not None:
                on_step(Step(shown, shown + 1, float(t.max()), x, mean))
            shown += 1
            return expand(alpha / sigma, z) * z - expand(norm / sigma, z) * mean

        k1 = rate(z, w, left)
        for _ in range(self.most):
            if not len(left):
                break
            h = torch.minimum(h, w - stop)
            step = expand(h, z)
            k2 = rate(z - 0.5 * step * k1, w - 0.5 * h, left)
            k3 = rate(z - 0.75 * step * k2, w - 0.75 * h, left)
            ahead = z - step * (2 / 9 * k1 + 1 / 3 * k2 + 4 / 9 * k3)
            k4 = rate(ahead, w - h, left)
            gap = step * (-5 / 72 * k1 + 1 / 12 * k2 + 1 / 9 * k3 - 1 / 8 * k4)
            allowed = self.atol + self.rtol * torch.maximum(z.abs(), ahead.abs())
            error = (gap / allowed).flatten(1).square().mean(1).sqrt().double()
            good = error <= 1
            z, k1 = torch.where(expand(good, z).bool(), ahead, z), torch.where(expand(good, z).bool(), k4, k1)
            w = torch.where(good, w - h, w)
            h = h * (0.9 * error.clamp_min(1e-12) ** (-1 / 3)).clamp(0.2, 5.0)
            over = w <= stop + 1e-12
            if bool(over.any()):
                out[left[over]] = z[over]
                z, k1, w, h, left = z[~over], k1[~over], w[~over], h[~over], left[~over]
        else:
            raise UserError(f"AdaptiveRK needed more than {self.most} tries: raise rtol and atol.")
        if not clean:
            return out * float(torch.hypot(*schedule.alpha_sigma(end)))
        t = float(schedule.time_at_angle(stop))
        x = out * float(torch.hypot(*schedule.alpha_sigma(t)))
        return denoiser(x, t, cond).mean * float(schedule.alpha_sigma(end)[0])


def _part(cond: Mapping | None, left: Tensor, count: int) -> Mapping | None:
    """The condition of the samples `left`: every tensor of the batch's length is indexed."""
    if cond is None or len(left) == count:
        return cond
    return {k: v[left] if isinstance(v, Tensor) and v.ndim and len(v) == count else v for k, v in cond.items()}


@dataclass(frozen=True, eq=False)
class GaussianStart(Sampler):
    """The first interval in closed form, as if the data were Gaussian, and a plan for the rest.

    At high noise only the data's mean and covariance matter, and there the flow from t to s is exact without a network:
    in the covariance's eigenbasis  x_s = alpha_s m + (S_s / S_t) (x_t - alpha_t m),  S^2 = alpha^2 variance + sigma^2.

    mean: the data's, event-shaped. variance: (D,) in the basis, or one number. basis: (D, D) with eigenvectors in
    columns, or None for the pixels themselves. solver: what runs from the second time of the grid on. Wang and Vastola
    2024, arXiv:2412.09726.
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor | None = None
    solver: Solver = field(default_factory=Multistep)

    def budget(self, steps, schedule, start):
        # the solver starts inside, at a finite noise level, as it does at any time below the start
        solver, intervals = self.solver.budget(steps, schedule, start / 2)
        return GaussianStart(self.mean, self.variance, self.basis, solver), intervals + 1

    def jump(self, x: Tensor, at: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
        """x_s on N(mean, covariance); at, to: (alpha, sigma)."""
        mean, variance = (torch.as_tensor(v).to(x) for v in (self.mean, self.variance))
        spread, spread_s = (torch.sqrt(float(a) ** 2 * variance + float(s) ** 2) for a, s in (at, to))
        z = (x - float(at[0]) * mean).flatten(1)
        gain = (spread_s / spread).flatten()
        basis = None if self.basis is None else self.basis.to(x)
        z = z * gain if basis is None else (z @ basis * gain) @ basis.mT
        return z.view(x.shape) + float(to[0]) * mean

    def run(self, denoiser, x1, times, cond=None, noise=None, on_step=None):
        schedule = denoiser.process.schedule
        if len(times) < 3:
            raise UserError("GaussianStart needs a grid of at least two intervals: the first is its own.")
        x = self.jump(x1, schedule.alpha_sigma(times[0]), schedule.alpha_sigma(times[1]))
        return self.solver.run(denoiser, x, times[1:], cond, noise, on_step)
