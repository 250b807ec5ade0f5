"""Distribution matching: samples that the teacher finds as likely as samples of the student's own law.

Noise the student's samples a little, to x_s. There the score of the data is known, by the teacher, and the score of the
student's own samples by a second copy of it, the fake, that is trained on them all along. The student descends the
reverse Kullback-Leibler divergence between the two noised laws, whose gradient in a sample x is, up to a positive
factor,

    fake(x_s) - teacher(x_s),        a difference of two means of x_0 given x_s.

No paths of the teacher are followed, so that the student's own errors are what is corrected, and modes that it has lost
are not looked for. Yin et al. 2024, arXiv:2311.18828, Eq. 7 and 8; without pairs, and several steps, arXiv:2405.14867.
With `adversarial`, a small classifier of noised samples, real against made, adds its gradient (ibid., section 4.3).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.fewstep.consistency import Teacher
from backdrift.fewstep.fixed import Fixed
from backdrift.objective.base import Losses, Objective, Samples
from backdrift.posterior import expand, flat


@kind("objective.DistributionMatching")
@dataclass(frozen=True)
class DistributionMatching(Objective):
    """As above, for a student that ends its path in one evaluation from any noise.

    guidance: of the teacher. whole: the share of the samples that the student makes from pure noise; the others it
    makes from noised data. adversarial: the weight of the classifier's gradient; 0 is none.
    """

    guidance: float = 1.0
    whole: float = 0.5
    adversarial: float = 0.0

    def __post_init__(self):
        if self.guidance < 0 or self.adversarial < 0 or not 0 <= self.whole <= 1:
            raise UserError("DistributionMatching needs guidance and adversarial >= 0, and whole a share of samples.")

    @property
    def ends_path(self):
        return True

    def head(self, network):
        return Critics(network, self.adversarial > 0)

    def losses(self, network, head, samples):
        blank = torch.zeros(len(samples.t), dtype=torch.float64)
        first = torch.where(samples.noise.at("whole").uniform(blank) < self.whole, 1.0, samples.t)
        made = network(network.process.corrupt(samples.x0, first, samples.noise), first, samples.cond).mean
        # the times of the data's own law, in another order
        s = samples.t.flip(0)
        fake_loss, step = self._matched(network, head, made, s, samples)
        total = fake_loss + flat(made - (made.detach() - step)).square().mean(1) / 2
        shown = fake_loss.detach()
        if self.adversarial > 0:
            total = total + self._contested(network, head, made, s, samples)
        return Losses(total, shown)

    def _matched(self, network, head: Critics, made: Tensor, s: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """The fake's own loss on these samples, (B,), and where it moves them, against the gradient."""
        process, noise = network.process, samples.noise.at("critics")
        xs = process.corrupt(made.detach(), s, noise)
        fake = head.fake(xs, s, samples.cond).mean
        with torch.no_grad():
            real = head.teacher.guided(self.guidance, samples.cond)(xs, s, samples.cond).mean
            size = flat(made - real).abs().mean(1).clamp_min(1e-3 * network.sigma_data)
            step = (fake - real) / expand(size, made) * network.sigma_data
        weight = network.target.weight(process.schedule, s)
        return weight.to(fake) * flat(fake - made.detach()).square().mean(1), step

    def _contested(self, network, head: Critics, made: Tensor, s: Tensor, samples: Samples) -> Tensor:
        """The classifier's loss, and the student's against it, (B,)."""
        process, noise = network.process, samples.noise.at("critics")
        real = process.corrupt(samples.x0, s, noise)
        ours, theirs = head.judge(network, process.corrupt(made.detach(), s, noise), s), head.judge(network, real, s)
        fooled = Fixed(head.classifier)(head.seen(network, process.corrupt(made, s, noise), s)).squeeze(1)
        return F.softplus(ours) + F.softplus(-theirs) + self.adversarial * F.softplus(-fooled)


class Critics(nn.Module):
    """The teacher, the fake, and the classifier where there is one."""

    def __init__(self, network, adversarial: bool):
        super().__init__()
        self.teacher = Teacher(network)
        self.fake = copy.deepcopy(self.teacher.network).requires_grad_(True)
        self.classifier = classifier(network.event_shape) if adversarial else None

    def seen(self, network, x: Tensor, s: Tensor) -> Tensor:
        """What the classifier sees of x at s: unit variance, and the noise angle as a further channel."""
        alpha, sigma = network.process.schedule.alpha_sigma(s)
        scale = (sigma**2 + (alpha * network.sigma_data) ** 2).rsqrt()
        w = torch.atan2(sigma, alpha * network.sigma_data)
        channel = expand(w, x).expand(-1, 1, *x.shape[2:])
        return torch.cat([expand(scale, x) * x, channel], 1)

    def judge(self, network, x: Tensor, s: Tensor) -> Tensor:
        """The log-odds that x is real, (B,)."""
        return self.classifier(self.seen(network, x, s)).squeeze(1)


def classifier(shape: tuple[int, ...], width: int = 64) -> nn.Module:
    """Log-odds (B, 1) of events of `shape` (C, H, W) or (D,), with one channel more."""
    if len(shape) == 3:
        first, second = nn.Conv2d(shape[0] + 1, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), *pool, nn.Linear(8 * width, 1))
    if len(shape) == 1:
        return nn.Sequential(
            nn.Linear(shape[0] + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )
    raise UserError(f"The adversarial term serves pictures (C, H, W) and points (D,), not samples of shape {shape}.")
