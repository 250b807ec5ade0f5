"""X-ray transforms: line integrals through a picture, for parallel and fan beams, any angles.

A line integral is a sum over points half a pixel apart, each read off the picture by bilinear interpolation. That is
one sparse matrix, made once; the adjoint is its transpose, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.inverse.measurement import LinearMeasurement, noise_model
from backdrift.inverse.noise import NoiseModel

STEP = 0.5  # between two points on a line, in pixels


class Radon(LinearMeasurement):
    """Line integrals, in pixels times the picture's unit: y (C, angles, detectors).

    angles: (A,) in radians. event_shape: (C, H, W), square. detectors: W of them by default, one pixel apart. source:
    None for parallel beams; for fan beams the source's distance from the centre, in pixels, the detectors lying on a
    line through the centre.

    Raises `UserError` for pictures that are not square, a source inside the picture, or no angles.
    """

    def __init__(
        self,
        angles: Tensor,
        event_shape: Sequence[int],
        noise: float | NoiseModel,
        detectors: int | None = None,
        source: float | None = None,
    ):
        channels, height, width = event_shape
        angles = torch.as_tensor(angles, dtype=torch.float64).flatten()
        if height != width or len(angles) == 0:
            raise UserError(f"X-ray transforms are of square pictures at one angle or more, not {height} x {width}.")
        if source is not None and source <= width / math.sqrt(2):
            raise UserError(f"The source must lie outside the picture, beyond {width / math.sqrt(2):.1f} pixels.")
        detectors = detectors or width
        self.event_shape, self.shape = (channels, height, width), (channels, len(angles), detectors)
        self.noise = noise_model(noise)
        self.rows = torch.stack([_rays(float(angle), width, detectors, source) for angle in angles])
        self.matrix_ = _matrix(self.rows.flatten(0, 1), width)

    def forward(self, x):
        y = self._times(self.matrix_, x.flatten(2).reshape(-1, self.matrix_.shape[1]))
        return y.view(len(x), *self.shape)

    def adjoint(self, v):
        x = self._times(self.matrix_.mT, v.reshape(-1, self.matrix_.shape[0]))
        return x.view(len(v), *self.event_shape)

    def vjp(self, x, v):
        return self.adjoint(v)

    @staticmethod
    def _times(matrix: Tensor, columns: Tensor) -> Tensor:
        return _Product.apply(columns, matrix.to(columns))


class _Product(torch.autograd.Function):
    """columns times a sparse matrix transposed, differentiable in the columns."""

    @staticmethod
    def forward(ctx, columns, matrix):
        ctx.save_for_backward(matrix)
        return (matrix @ columns.mT).mT

    @staticmethod
    def backward(ctx, slope):
        (matrix,) = ctx.saved_tensors
        return (matrix.mT @ slope.mT).mT, None


def _rays(angle: float, width: int, detectors: int, source: float | None) -> Tensor:
    """Two points of each ray, (detectors, 2, 2), as (across, down) from the picture's centre, in pixels."""
    place = torch.arange(detectors, dtype=torch.float64) - (detectors - 1) / 2
    across = torch.tensor([math.cos(angle), -math.sin(angle)], dtype=torch.float64)
    along = torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
    middle = place[:, None] * across
    if source is None:
        return torch.stack([middle - along, middle + along], 1)
    return torch.stack([(-source * along).expand(detectors, 2), middle], 1)


def _matrix(rays: Tensor, width: int) -> Tensor:
    """The sparse matrix (rays, width^2) of integrals along rays (R, 2, 2)."""
    first, second = rays.unbind(1)
    direction = second - first
    direction = direction / direction.norm(dim=1, keepdim=True)
    # the point of each ray that is nearest to the centre, and from there as far as the picture reaches
    nearest = first - (first * direction).sum(1, keepdim=True) * direction
    reach = width / math.sqrt(2) + 1
    t = torch.arange(-reach, reach + STEP, STEP, dtype=torch.float64)
    points = nearest[:, None] + t[:, None] * direction[:, None] + (width - 1) / 2
    corner = points.floor()
    share = points - corner
    ray = torch.arange(len(rays))[:, None].expand(len(rays), len(t))
    places, values = [], []
    for right in (0, 1):
        for down in (0, 1):
            at = corner + torch.tensor([right, down])
            weight = (share[..., 0] if right else 1 - share[..., 0]) * (share[..., 1] if down else 1 - share[..., 1])
            inside = ((at >= 0) & (at < width)).all(-1)
            pixel = (at[..., 1] * width + at[..., 0]).long()
            places.append(torch.stack([ray[inside], pixel[inside]]))
            values.append(weight[inside] * STEP)
    size = (len(rays), width * width)
    return torch.sparse_coo_tensor(torch.cat(places, 1), torch.cat(values), size, check_invariants=False).coalesce()


def filtered(y: Tensor) -> Tensor:
    """y (..., angles, detectors) with each projection passed through the ramp filter: what back-projection needs.

    The adjoint of it, times pi / (2 angles), is the classical reconstruction from evenly spread parallel beams.
    """
    n = y.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * n))
    # the ramp's own samples, not |frequency|: the latter loses the mean. Kak and Slaney 1988, Eq. 3.61
    k = torch.arange(size, dtype=torch.float64)
    k = torch.minimum(k, size - k)
    ramp = torch.where(k % 2 == 1, -1 / (math.pi * k.clamp_min(1)) ** 2, 0.0)
    ramp[0] = 0.25
    response = torch.fft.rfft(ramp).real.to(y)
    return torch.fft.irfft(torch.fft.rfft(y, n=size) * response, n=size)[..., :n] * 2
