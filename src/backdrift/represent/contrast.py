"""Learning what is in pictures by telling them apart: the contrastive objective of SimCLR.

Two views of each of B pictures are encoded. Of the 2 B vectors, each has one partner, the other view of its picture,
and must be recognised among the other 2 B - 1 by the angle between them:

    loss(i) = -log  exp(cos(z_i, z_partner) / temperature) / sum_{k != i} exp(cos(z_i, z_k) / temperature)

(Chen et al. 2020, arXiv:2002.05709, Eq. 1). z is a small network's reading of the representation, not the
representation itself: what the views differ in is lost in z and partly kept before it (ibid., section 4.2).

It is the one objective whose loss of a sample depends on its neighbours in the batch. Parts of a batch, and
processes, each look among their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.objective.base import Losses, Objective
from backdrift.represent.augment import Augmentation, Move, view
from backdrift.represent.encoder import Encoder


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The loss above of each of B pictures, the mean of its two views': (B,), at least float32.

    first, second: (B, D), the two views' vectors; their lengths do not matter. Raises `UserError` for one picture.
    """
    count = len(first)
    if count < 2:
        raise UserError("Pictures are told apart in batches of at least two; use a larger batch, or fewer parts.")
    both = torch.cat([first, second])
    z = F.normalize(both.to(torch.promote_types(both.dtype, torch.float32)), dim=1)
    cosines = (z @ z.T / temperature).masked_fill(torch.eye(2 * count, dtype=torch.bool, device=z.device), -torch.inf)
    partner = torch.arange(2 * count, device=z.device).roll(count)
    return F.cross_entropy(cosines, partner, reduction="none").view(2, count).mean(0)


@kind("objective.Contrast")
@dataclass(frozen=True)
class Contrast(Objective):
    """Trains an `Encoder`, not a denoiser; times and labels are not looked at.

    size: of the representation. temperature: small ones look at the nearest others. views: the changes (`augment`).
    """

    size: int = 64
    temperature: float = 0.2
    views: tuple[Augmentation, ...] = field(default_factory=lambda: (Move(),))

    def __post_init__(self):
        if self.size < 2:
            raise UserError(f"A representation has at least 2 numbers, not {self.size}.")
        if not self.temperature > 0:
            raise UserError(f"The temperature must be positive, not {self.temperature}.")
        if not self.views:
            raise UserError("Without changes the two views of a picture are the same; give at least one.")

    def outputs(self, channels, classes):
        return self.size

    def network(self, net, process, target, shape, std, classes):
        return Encoder(net, process, std, shape)

    def losses(self, network, head, samples):
        noise = samples.noise.at("view")
        first, second = (view(samples.x0, self.views, noise.at(which)) for which in range(2))
        loss = nt_xent(*network.readings(torch.cat([first, second])).chunk(2), self.temperature)
        return Losses(loss, loss.detach())
