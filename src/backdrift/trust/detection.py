"""What an out-of-distribution score is worth: p-values from the prior alone, and figures against known outliers.

The prior itself says how scores are spread where nothing is wrong: draw x from it (or take held-out pictures), measure
it, and score the measurement as any other. The rank of a new score among these is a p-value that needs no outlier, no
threshold and no likelihood, and that makes scores comparable between operators. Scores can be off to either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.posterior import flat


@dataclass(frozen=True)
class Null:
    """Scores where nothing is wrong. scores: (M,). maps: (M, *event), non-negative, or None.

    Raises `UserError` for less than 19 scores, which could never give a p-value of .05.
    """

    scores: Tensor
    maps: Tensor | None = None

    def __post_init__(self):
        if self.scores.ndim != 1 or len(self.scores) < 19 or not bool(self.scores.isfinite().all()):
            raise UserError("A null needs at least 19 finite scores: with fewer no p-value can fall below .05.")

    def above(self, scores: Tensor) -> Tensor:
        """P(a null score >= this one), (N,), counting the new score among them, so that it is never 0."""
        return self._share((self.scores[None] >= scores[:, None]).sum(1))

    def below(self, scores: Tensor) -> Tensor:
        """P(a null score <= this one), (N,)."""
        return self._share((self.scores[None] <= scores[:, None]).sum(1))

    def two_sided(self, scores: Tensor) -> Tensor:
        """Twice the smaller of the two tails, at most 1, (N,)."""
        return (2 * torch.minimum(self.above(scores), self.below(scores))).clamp_max(1.0)

    def _share(self, count: Tensor) -> Tensor:
        return (1 + count).double() / (len(self.scores) + 1)

    def unusual(self, maps: Tensor) -> Tensor:
        """How far each pixel of a map (N, *event) is from the null's, in standard deviations of the logarithm."""
        logs, null = _logs(maps), _logs(self._maps())
        return (logs - null.mean(0)) / null.std(0).clamp_min(1e-12)

    def family(self, maps: Tensor) -> Tensor:
        """p-values (N,) of the most unusual pixel of each map: of any pixel at all, however many there are."""
        null, count = _logs(self._maps()), len(self.scores)
        # each null map against the others, as a new one is
        mean = (null.sum(0) - null) / (count - 1)
        square = (null.square().sum(0) - null.square()) / (count - 1) - mean.square()
        std = (square * (count - 1) / (count - 2)).clamp_min(1e-24).sqrt()
        largest = flat((null - mean) / std).amax(1)
        return Null(largest).above(flat(self.unusual(maps)).amax(1))

    def _maps(self) -> Tensor:
        if self.maps is None:
            raise UserError("This null was made without maps.")
        return self.maps


def _logs(maps: Tensor) -> Tensor:
    return maps.double().clamp_min(1e-12).log()


@dataclass(frozen=True)
class Rate:
    """An area under the ROC curve, 1/2 by chance, with its 95 % interval over resampled pictures."""

    value: float
    low: float
    high: float


def auroc(usual: Tensor, unusual: Tensor, resamples: int = 1000, seed: int = 0) -> Rate:
    """P(an outlier's score (N,) > a usual one's (M,)) + P(equal) / 2."""
    rng = np.random.default_rng(seed)
    a, b = usual.double().numpy(), unusual.double().numpy()
    wins = (b[:, None] > a[None]) + 0.5 * (b[:, None] == a[None])
    picks = ((rng.integers(len(b), size=len(b)), rng.integers(len(a), size=len(a))) for _ in range(resamples))
    return _rate(wins.mean(), [wins[rows][:, columns].mean() for rows, columns in picks])


def pixel_auroc(maps: Tensor, masks: Sequence[Tensor] | Tensor, resamples: int = 1000, seed: int = 0) -> Rate:
    """The same over the pixels of each map (N, *event), inside against outside its mask; the mean over pictures.

    The interval resamples pictures: pixels of one picture are not independent. Raises `UserError` for an empty or full
    mask.
    """
    each = []
    for one, mask in zip(maps, masks, strict=True):
        inside = one[mask.bool()]
        if not 0 < len(inside) < one.numel():
            raise UserError("A mask must hold some pixels and leave some out.")
        order = torch.cat([one[~mask.bool()], inside]).double().numpy()
        ranks = _ranks(order)[-len(inside) :]
        outside = one.numel() - len(inside)
        each.append((ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * outside))
    each, rng = np.array(each), np.random.default_rng(seed)
    return _rate(each.mean(), each[rng.integers(len(each), size=(resamples, len(each)))].mean(1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1, ties in the middle of their places."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1) / 2


def _rate(value: float, resampled) -> Rate:
    return Rate(float(value), *(float(q) for q in np.quantile(resampled, [0.025, 0.975])))
