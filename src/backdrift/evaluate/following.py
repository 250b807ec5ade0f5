"""Whether pictures follow the condition that they were given: it is taken from them again, and compared with the given.

Edges are compared by F1, pixel by pixel; regions by the mean intersection over union. Both are 1 where the two are the
same and are read against a floor, what pictures score that were made without the condition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backdrift.data.derived import Derived, Edges, LowResolution, Segmentation
from backdrift.errors import UserError
from backdrift.noise import Noise


def f1(given: Tensor, found: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|) of the pixels above 0, per sample (B,); 1 where neither has any."""
    a, b = given.flatten(1) > 0, found.flatten(1) > 0
    total = a.sum(1) + b.sum(1)
    return torch.where(total > 0, 2 * (a & b).sum(1) / total.clamp_min(1), 1.0)


def mean_iou(given: Tensor, found: Tensor) -> Tensor:
    """Intersection over union of the pixels of each value, averaged over the values that either has; (B,)."""
    a, b = given.flatten(1), found.flatten(1)
    shares, counts = torch.zeros(len(a)), torch.zeros(len(a))
    for value in torch.cat([a, b]).unique():
        both, either = ((a == value) & (b == value)).sum(1).cpu(), ((a == value) | (b == value)).sum(1).cpu()
        shares += both / either.clamp_min(1)
        counts += either > 0
    return shares / counts


def likeness(given: Tensor, found: Tensor) -> Tensor:
    """1 minus the root mean square difference, per sample (B,)."""
    return 1 - (given - found).flatten(1).square().mean(1).sqrt()


MEASURES: dict[type[Derived], tuple[str, str, Callable[[Tensor, Tensor], Tensor]]] = {
    Edges: ("edges", "F1 of edges", f1),
    Segmentation: ("segments", "mean IoU of regions", mean_iou),
    LowResolution: ("small", "1 - RMS of the small copy", likeness),
}


def following(derived: Derived, given: Tensor, pictures: Tensor) -> Tensor:
    """How well each of `pictures` (B, C, H, W) has the condition `given` (B, K, H, W): (B,), 1 for exactly.

    Raises `UserError` for a condition that has no measure.
    """
    if type(derived) not in MEASURES:
        raise UserError(f"There is no measure of how well pictures follow {type(derived).__name__}.")
    name, _, measure = MEASURES[type(derived)]
    return measure(given, derived.cond(pictures, Noise.of(0, len(pictures)))[name])


def mean_and_half(values: Tensor) -> tuple[float, float]:
    """The mean of independent figures (B,), and half the width of its 95 % interval."""
    return float(values.mean()), float(1.96 * values.std() / len(values) ** 0.5)
