"""Has the model learnt the distribution or its training pictures by heart?

Held-out pictures are honest draws that the model never saw. Their distance to the nearest training picture is
what a sample's should be; samples that lie closer were remembered. The figure is the ratio of the two medians:
near 1 for honest samples, 0 for copies, and above 1 for samples off the data (which the other figures measure).
Samples that are smoother than real pictures also lie closer to everything and can bring the ratio below 1 by
themselves, so look at the pairs.

A median does not see a small part of the samples that are exact copies; these are counted apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.evaluate.intervals import bootstrap_ratio_of_medians

THRESHOLD = 0.9
_CANDIDATES = 8


@dataclass(frozen=True)
class Memorisation:
    """The outcome of `memorisation`.

    `ratio` with its 95 % interval `low`, `high` (NaN where half of the held-out pictures have a twin in training);
    `copies` among the `n` samples and `heldout_copies` among the `heldout` pictures are equal to a training
    picture after rounding to 8 bits; `pairs` are (sample, training picture, distance), nearest first, the distance
    being the root mean square over pixels.
    """

    ratio: float
    low: float
    high: float
    n: int
    heldout: int
    copies: int
    heldout_copies: int
    pairs: tuple[tuple[int, int, float], ...]

    @property
    def memorised(self) -> bool:
        """The ratio is below 0.9; the point estimate decides, the interval says how sure that is."""
        return self.ratio < THRESHOLD

    def line(self) -> str:
        """The verdict in one line, beginning with MEMORISED if so."""
        copies = f"{self.copies} of {self.n} samples and {self.heldout_copies} of {self.heldout} held-out pictures"
        copies += " are copies of a training picture"
        if math.isnan(self.ratio):
            return f"Memorisation undecided: most held-out pictures have a twin in training; {copies}."
        figure = f"median distance to the nearest training picture is {self.ratio:.3f}"
        figure += f" [{self.low:.3f}, {self.high:.3f}] of that of held-out pictures; {copies}."
        return f"MEMORISED: {figure}" if self.memorised else f"Not memorised: {figure}"


def memorisation(samples: Tensor, train: Tensor, heldout: Tensor, *, pairs: int = 16, seed: int = 0) -> Memorisation:
    """Compare how near `samples` (n, C, H, W) and `heldout` (m, C, H, W) lie to `train` (N, C, H, W), in pixels.

    The interval is a percentile bootstrap that redraws samples and held-out pictures; their distances do not change
    when they are redrawn, so that the bootstrap has no bias here.
    """
    if not samples.shape[1:] == train.shape[1:] == heldout.shape[1:]:
        raise UserError(
            f"Samples {tuple(samples.shape[1:])}, training pictures {tuple(train.shape[1:])} and held-out pictures "
            f"{tuple(heldout.shape[1:])} must have one shape."
        )
    near, which = nearest(samples, train)
    near_heldout, which_heldout = nearest(heldout, train)
    ratio, low, high = math.nan, math.nan, math.nan
    if float(near_heldout.median()) > 0:
        ratio = float(near.median() / near_heldout.median())
        low, high = bootstrap_ratio_of_medians(near, near_heldout, seed=seed)
    order = near.argsort()[:pairs].tolist()
    return Memorisation(
        ratio,
        low,
        high,
        len(samples),
        len(heldout),
        _copies(samples, train[which]),
        _copies(heldout, train[which_heldout]),
        tuple((i, int(which[i]), float(near[i])) for i in order),
    )


def nearest(queries: Tensor, points: Tensor, block: int = 4096) -> tuple[Tensor, Tensor]:
    """For each of `queries` (n, *event) the distance (n,) to the nearest of `points` (N, *event), and its index.

    The distance is the root mean square over the event, in float64. Float32 matrix products over blocks of points
    find eight candidates, whose distances are recomputed by differences in float64: exact unless more than eight
    points tie within the rounding of the product (about 1e-6 of the squared norms around the mean of `points`).
    Extra memory: n x `block` numbers.
    """
    size = queries[0].numel()
    queries, points = queries.reshape(len(queries), -1), points.reshape(len(points), -1)
    centre = points.mean(0, keepdim=True)
    q = (queries - centre).float()
    scores, indices = [], []
    for start in range(0, len(points), block):
        p = (points[start : start + block] - centre).float()
        top = (p.square().sum(1) - 2 * q @ p.T).topk(min(_CANDIDATES, len(p)), dim=1, largest=False)
        scores.append(top.values)
        indices.append(top.indices + start)
    best = torch.cat(scores, 1).topk(min(_CANDIDATES, len(points)), dim=1, largest=False).indices
    candidates = torch.cat(indices, 1).gather(1, best)
    exact = torch.cat(
        [
            (q[:, None].double() - points[c].double()).square().sum(2)
            for q, c in zip(queries.split(32), candidates.split(32), strict=True)
        ]
    )
    value, column = exact.min(1)
    return (value / size).sqrt(), candidates.gather(1, column[:, None])[:, 0]


def _copies(pictures: Tensor, originals: Tensor) -> int:
    # One level of 8 bits is 2/255 wide in [-1, 1]: closer than half of it in every pixel means the same file
    return int(((pictures - originals).abs().flatten(1).amax(1) <= 1 / 255).sum())
