"""Fidelity and diversity from nearest neighbours: precision, recall, density and coverage.

A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour in
the same set. Precision asks how many samples lie on the real manifold, recall how many real pictures lie on the
samples' manifold. Both trust every ball, also the huge one around an outlier; density counts balls instead
of asking for one, and coverage asks which real balls hold a sample, so that outliers among the samples no longer
help.

The balls shrink as the sets grow, so the figures depend on the sizes of both sets: read them beside a floor of the
same sizes. Everything runs in float64, in blocks of rows: extra memory is `block` times the size of a set.
"""

from __future__ import annotations

import torch
from torch import Tensor


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, block: int = 2048) -> tuple[float, float]:
    """Improved precision and recall of `fake` (n, F) against `real` (m, F), both in [0, 1].

    Kynkäänniemi et al. 2019, eqs. 1 and 2; k = 3 as there. Needs n > k and m > k.
    """
    real, fake = _centred(real, fake)
    in_real, _ = _balls(real, radii(real, k, block), fake, block)
    in_fake, _ = _balls(fake, radii(fake, k, block), real, block)
    return float((in_real > 0).double().mean()), float((in_fake > 0).double().mean())


def density_coverage(real: Tensor, fake: Tensor, k: int = 5, block: int = 2048) -> tuple[float, float]:
    """Density (>= 0, near 1 for perfect samples) and coverage (in [0, 1]) of `fake` (n, F) against `real` (m, F).

    Naeem et al. 2020, section 3; k = 5 as there. Needs m > k.
    """
    real, fake = _centred(real, fake)
    in_real, hit = _balls(real, radii(real, k, block), fake, block)
    return float(in_real.double().mean()) / k, float(hit.double().mean())


def radii(points: Tensor, k: int, block: int = 2048) -> Tensor:
    """Squared distance from each of the `points` (n, F) to its k-th nearest other point: (n,)."""
    # the nearest neighbour of a point in its own set is itself, hence k + 1
    return torch.cat([_squared(rows, points).topk(k + 1, largest=False).values[:, -1] for rows in points.split(block)])


def _balls(centres: Tensor, radii: Tensor, points: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """For each point the number of balls that hold it, and for each ball whether it holds any point."""
    # Duplicates have distance and radius zero, which the product form knows up to rounding only
    rounding = 1e-13 * (centres.square().sum(1).max() + points.square().sum(1).max())
    counts, hit = [], torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
    for rows in points.split(block):
        inside = _squared(rows, centres) <= radii + rounding
        counts.append(inside.sum(1))
        hit |= inside.any(0)
    return torch.cat(counts), hit


def _squared(a: Tensor, b: Tensor) -> Tensor:
    squared = torch.addmm(b.square().sum(1).expand(len(a), -1), a, b.T, alpha=-2)
    return squared.add_(a.square().sum(1)[:, None]).clamp_min_(0)


def _centred(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets around one common point, because the product form cancels the offset they share."""
    centre = a.double().mean(0)
    return a.double() - centre, b.double() - centre
