"""The law that composed conditions suggest, by weighted particles.

`Composed` follows s = sum_i w_i s_i, the score of L_t = prod_i p_{t,i}^{w_i} at every level (the unconditional model
included, with the weight that makes the sum 1). Were L_t the noised version of L_0, the reverse SDE with s would carry
one to the other. It is not: with x_t' = f x + g noise, the density of each p_{t,i} obeys the Fokker-Planck equation and
the product falls short of it by a term without derivatives,

    d log w = (g^2 / 2) (|s|^2 - sum_i w_i |s_i|^2) d(time back),    g^2 dt = sigma^2 d log(sigma^2 / alpha^2),

which is the weight that a particle gathers. Particles that are resampled by it follow L_t, and end in L_0. Skreta et
al. 2025, arXiv:2503.02819, Propositions 3.1 to 3.3 (for a product and for a power), in this form for any weights.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.guide.composed import Composed
from backdrift.noise import Noise
from backdrift.posterior import TensorPosterior, flat
from backdrift.process.gaussian import Gaussian
from backdrift.sample.plan import Step
from backdrift.sample.solver import Sampler


@kind("solver.Particles")
@dataclass(frozen=True)
class Particles(Sampler):
    """Ancestral steps of `count` particles for each sample, resampled where their weights become uneven.

    Only for `Composed` denoisers of a Gaussian process. Each sample owns its particles, so that it does not depend on
    the batch; a step is one evaluation of count times as many states. The bias falls as 1 / count and with the steps.
    """

    count: int = 32

    def __post_init__(self):
        if self.count < 2:
            raise UserError(f"Particles need a count of at least 2, not {self.count}.")

    def run(self, denoiser, x1, times, cond=None, noise=None, on_step=None):
        if not isinstance(denoiser, Composed) or not isinstance(denoiser.process, Gaussian):
            raise UserError("Particles sample a guide.Composed denoiser of a Gaussian process, and nothing else.")
        if noise is None:
            raise UserError("Particles are stochastic: give them a Noise, such as Noise.of(seed, batch).")
        batch, K, total = len(x1), self.count, len(times) - 1
        cond = {name: value.repeat_interleave(K, 0) for name, value in (cond or {}).items()}
        own = Noise(noise.seed, (noise.index[:, None] * K + torch.arange(K)).flatten(), noise.stream).at("particles", K)
        x = denoiser.process.prior(x1.repeat_interleave(K, 0), own.at("prior"))
        # the first particle of a sample starts where the sample does
        x.view(batch, K, *x1.shape[1:])[:, 0] = x1
        log_weights = torch.zeros(batch, K, dtype=torch.float64, device=x.device)
        levels = log_noise(denoiser.process.schedule, times)
        rate_before = None
        for n, (t, s) in enumerate(itertools.pairwise(times.tolist())):
            mean, rate = weighted(denoiser, x, t, cond)
            if rate_before is not None:
                # the trapezoid rule over the step that led here
                log_weights += (rate_before + rate.view(batch, K)) / 2 * (levels[n - 1] - levels[n])
                x, log_weights, chosen = resampled(x, log_weights, noise.at("resample", n))
                mean, rate = mean[chosen], rate[chosen]
            if on_step is not None:
                on_step(Step(n, total, t, x, mean))
            x = denoiser.process.bridge(x, TensorPosterior(mean), t, s, own.at("bridge", n))
            rate_before = rate.view(batch, K)
        pick = systematic(log_weights.softmax(1), noise.at("pick").uniform(log_weights[:, 0]), 1)[:, 0]
        return x.view(batch, K, *x1.shape[1:])[torch.arange(batch), pick]


def weighted(denoiser: Composed, x: Tensor, t: float, cond: dict) -> tuple[Tensor, Tensor]:
    """(the composed mean, d log w per unit of log(sigma^2 / alpha^2), (B,) float64)."""
    alpha, sigma = (float(v) for v in denoiser.process.schedule.alpha_sigma(t))
    parts = denoiser.parts(x, t, cond)
    scores = [(weight, (alpha * flat(belief.mean).double() - flat(x).double()) / sigma) for weight, belief in parts]
    whole = sum(weight * score for weight, score in scores)
    each = sum(weight * score.square().sum(1) for weight, score in scores)
    mean = sum(weight * belief.mean for weight, belief in parts)
    return mean, (whole.square().sum(1) - each) / 2


def log_noise(schedule, times: Tensor) -> list[float]:
    """log(sigma^2 / alpha^2), its infinite ends held at +-40."""
    return [-float(v) for v in schedule.logsnr(times).clamp(-40, 40)]


def resampled(x: Tensor, log_weights: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Particles drawn anew for the samples whose effective number is below half; the rows of x that were taken, too."""
    batch, K = log_weights.shape
    weights = log_weights.softmax(1)
    uneven = 1 / weights.square().sum(1) < K / 2
    keep = torch.arange(K, device=x.device).expand(batch, K)
    drawn = systematic(weights, noise.uniform(log_weights[:, 0]), K)
    chosen = torch.where(uneven[:, None], drawn, keep) + torch.arange(batch, device=x.device)[:, None] * K
    return x[chosen.flatten()], log_weights.masked_fill(uneven[:, None], 0.0), chosen.flatten()


def systematic(weights: Tensor, u: Tensor, count: int) -> Tensor:
    """`count` indices per row of weights (B, K), by one uniform number u (B,) each: systematic resampling, (B, count).

    The expected number of copies is exactly count times the weight. Carpenter, Clifford and Fearnhead 1999,
    doi:10.1049/ip-rsn:19990255, section 3.
    """
    points = (torch.arange(count, dtype=weights.dtype, device=weights.device) + u[:, None]) / count
    return torch.searchsorted(weights.cumsum(1), points.contiguous()).clamp_max(weights.shape[1] - 1)
