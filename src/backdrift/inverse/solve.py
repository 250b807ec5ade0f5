"""Conjugate gradients on a batch of symmetric positive systems, each sample with a step size of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backdrift.posterior import expand, flat


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, iterations: int = 100, tolerance: float | None = None
) -> Tensor:
    """x with product(x) = right, (B, *shape), started at zero.

    product: a symmetric positive (semi-)definite map, sample by sample. tolerance: a sample is finished when its
    residual is this fraction of its right side; by default 10 epsilon of the dtype's square root scale. A finished
    sample no longer changes, so that the answer for one does not depend on its neighbours.

    Hestenes and Stiefel 1952, doi:10.6028/jres.049.044, Eq. 3:1.
    """
    return carried_gradients(lambda v: (product(v), v), right, iterations, tolerance)


def carried_gradients(
    product: Callable[[Tensor], tuple[Tensor, Tensor]],
    right: Tensor,
    iterations: int = 100,
    tolerance: float | None = None,
) -> Tensor:
    """L x for the x of `conjugate_gradients`, where product(v) gives the image of v and L v, L being linear.

    Where the image is made by way of L v, L x costs nothing more.
    """
    tolerance = tolerance if tolerance is not None else (1e-10 if right.dtype == torch.float64 else 1e-5)
    carried = None
    residual, direction = right, right
    norm = _dot(residual, residual)
    enough = tolerance**2 * norm
    for n in range(iterations):
        open_ = norm > enough
        if n and not bool(open_.any()):
            break
        image, companion = product(direction)
        curvature = _dot(direction, image)
        open_ = open_ & (curvature > 0)
        step = torch.where(open_, norm / curvature.where(open_, torch.ones_like(curvature)), 0.0)
        part = expand(step, companion) * companion
        carried = part if carried is None else carried + part
        residual = residual - expand(step, residual) * image
        new = torch.where(open_, _dot(residual, residual), norm)
        ratio = torch.where(open_, new / norm.where(norm > 0, torch.ones_like(norm)), 0.0)
        direction = residual + expand(ratio, residual) * direction
        norm = torch.where(open_, new, torch.zeros_like(new))
    return carried


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (flat(a) * flat(b)).sum(1)
