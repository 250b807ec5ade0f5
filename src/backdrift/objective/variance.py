"""Learned reverse variances: what the hybrid loss of Improved DDPM adds to the loss of the mean.

A reverse step from t to s < t may have any variance between the bridge's own, sigma_s^2 var_ts / sigma_t^2, and the
step's, var_ts. A network with twice as many channels says where in between, in log and for every element
(`posterior.fraction`), and learns it from the bound at that step,

    KL(q(x_s | x_t, x_0) | p(x_s | x_t)) = (r - 1 - log r) / 2 + r / 2 (g_s - g_t) e^2,     r = (sigma_s^2/sigma_t^2)^f

with g = alpha^2 / sigma^2, e = x_0 - E[x_0 | x_t] and f the fraction (Nichol and Dhariwal 2021, arXiv:2102.09672,
Eq. 15 and 16). No gradient passes through e, so the mean itself is not pulled towards the bound; what network the two
share is trained by both losses. The best fraction,

    f = log(1 + (g_s - g_t) E[e^2 | x_t]) / log(sigma_t^2 / sigma_s^2),

has a limit for many small steps and otherwise depends on the step. On a variance-preserving schedule it lies within
[0, 1] for Gaussian data of variance up to 1, and may leave it for others; so it is not confined, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.posterior import TensorPosterior, expand, flat
from backdrift.schedule import Schedule


def step_kl(square: Tensor, width: Tensor, shrink: Tensor, fraction: float | Tensor) -> Tensor:
    """The KL above, element by element, in nats. square: e^2. width: g_s - g_t. shrink: sigma_s^2 / sigma_t^2."""
    ratio = shrink**fraction
    return (ratio - 1 - ratio.log() + ratio * width * square) / 2


@kind("variance.Hybrid")
@dataclass(frozen=True)
class Hybrid:
    """Adds `share` times the bound of a model of `steps` steps, uniform in t, in nats per element.

    A step that starts nearer to the data than two of those steps halves its time.
    """

    share: float = 1e-3
    steps: int = 1000

    def __post_init__(self):
        if not self.share > 0:
            raise UserError(f"The hybrid loss needs a positive share of the bound, not {self.share}.")
        if self.steps < 1:
            raise UserError(f"The hybrid loss needs at least 1 step, not {self.steps}.")

    def cost(self, belief: TensorPosterior, x0: Tensor, t: Tensor, schedule: Schedule, density: Tensor) -> Tensor:
        """What is added for each sample, (B,) float64. density: of the law of t (B,)."""
        s = torch.maximum(t - 1 / self.steps, t / 2)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        square = (x0 - belief.mean.detach()).double().square()
        width, shrink = (alpha_s / sigma_s) ** 2 - (alpha_t / sigma_t) ** 2, (sigma_s / sigma_t) ** 2
        kl = step_kl(square, expand(width, square), expand(shrink, square), belief.fraction.double())
        return expand(self.share * self.steps / density, square).flatten() * flat(kl).mean(1)
