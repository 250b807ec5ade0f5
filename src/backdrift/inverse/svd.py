"""The singular values of a measurement, A = U diag(values) V^T, its bases as maps: often no matrix is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SVD:
    """A's positive singular values (k,) float64, and its two orthonormal bases as maps.

    right: V^T x, (B, *event) to (B, k). back: V c, (B, k) to (B, *event). left: U^T y, (B, *shape) to (B, k).
    """

    values: Tensor
    right: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    left: Callable[[Tensor], Tensor]
