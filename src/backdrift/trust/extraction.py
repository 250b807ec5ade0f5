"""Training pictures that a model gives away, and whether two trainings agree.

Extraction: a sample is a near-copy if it lies much nearer to one training picture than to the others around it. The
distance to the nearest one over the mean distance to the 50 nearest is small for copies, also shifted in brightness or
blurred a little, and does not call a smooth sample a copy, which lies near to everything (Carlini et al. 2023,
arXiv:2301.13188, Eq. 2). What counts as small is read off held-out pictures, which nobody copied.

Agreement: two networks that were trained apart, shown the same noise, make the same picture where they have learnt the
law, and different ones where each has learnt its own pictures (Kadkhodaie et al. 2024, arXiv:2310.02557).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.evaluate.intervals import bootstrap_ratio_of_medians, wilson
from backdrift.posterior import flat
from backdrift.sample import sample
from backdrift.sample.sde import DDIM

NEIGHBOURS = 50
BLOCK = 512


@dataclass(frozen=True)
class Extraction:
    """copies: (sample, training picture, relative distance), nearest first, of those below `threshold`. n: samples.

    heldout: pictures that set the threshold, of which one at most lies below it. low, high: 95 % interval of the share
    of samples that are near-copies.
    """

    copies: tuple[tuple[int, int, float], ...]
    n: int
    heldout: int
    threshold: float
    low: float
    high: float

    def line(self) -> str:
        """The finding in one line."""
        share = f"{len(self.copies)} of {self.n} samples ([{self.low:.3f}, {self.high:.3f}])"
        return (
            f"{share} lie nearer to one training picture, for their surroundings, than any of {self.heldout} held-out "
            f"pictures (relative distance below {self.threshold:.3f}); by chance {self.n / self.heldout:.1f} would."
        )


def extraction(samples: Tensor, train: Tensor, heldout: Tensor, neighbours: int = NEIGHBOURS) -> Extraction:
    """Near-copies of `train` (N, *event) among `samples` (n, *event), against `heldout` (m, *event).

    Raises `UserError` for sets of different shapes, or too few training pictures to have neighbours.
    """
    if not samples.shape[1:] == train.shape[1:] == heldout.shape[1:]:
        raise UserError("Samples, training and held-out pictures must have one shape.")
    if len(train) <= neighbours or len(heldout) < 20:
        raise UserError(f"Extraction needs more than {neighbours} training and at least 20 held-out pictures.")
    (near, which), (usual, _) = (relative(x, train, neighbours) for x in (samples, heldout))
    threshold = float(usual.min())
    order = [i for i in near.argsort().tolist() if float(near[i]) < threshold]
    low, high = wilson(len(order), len(samples))
    copies = tuple((i, int(which[i]), float(near[i])) for i in order)
    return Extraction(copies, len(samples), len(heldout), threshold, low, high)


def relative(x: Tensor, points: Tensor, neighbours: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """(distance to the nearest of points over the mean to the nearest `neighbours`, (n,); which one is nearest)."""
    near, which = [], []
    for part in flat(x).double().split(BLOCK):
        gaps = [torch.cdist(part, p.double()) for p in flat(points).split(8 * BLOCK)]
        found = torch.cat(gaps, 1).topk(neighbours, 1, largest=False)
        near.append(found.values[:, 0] / found.values.mean(1).clamp_min(1e-30))
        which.append(found.indices[:, 0])
    return torch.cat(near), torch.cat(which)


@dataclass(frozen=True)
class Agreement:
    """share: the median distance between the two models' pictures of one noise, over that of two noises of one model;
    0 where they are the same, 1 where they have nothing in common. low, high: 95 % interval. pictures: of both."""

    share: float
    low: float
    high: float
    pictures: tuple[Tensor, Tensor]


@torch.no_grad()
def seeds_agree(a: Denoiser, b: Denoiser, n: int = 64, *, steps: int = 50, seed: int = 0) -> Agreement:
    """Whether two networks that were trained apart make the same pictures of the same noise.

    Deterministic DDIM steps, without labels. Raises `UserError` for models of different shapes.
    """
    if tuple(a.event_shape) != tuple(b.event_shape):
        raise UserError(f"The models make {tuple(a.event_shape)} and {tuple(b.event_shape)}; they cannot agree.")
    one, two = (sample(d, shape=(n, *d.event_shape), solver=DDIM(), steps=steps, seed=seed) for d in (a, b))
    same = flat(one - two).double().norm(dim=1)
    other = torch.cat([flat(x - x.roll(1, 0)).double().norm(dim=1) for x in (one, two)])
    low, high = bootstrap_ratio_of_medians(same, other, seed=seed)
    return Agreement(float(same.median() / other.median()), low, high, (one, two))
