"""Measurements pixel by pixel: masks, averages, ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from backdrift.errors import UserError
from backdrift.inverse.measurement import LinearMeasurement, Measurement, noise_model
from backdrift.inverse.noise import NoiseModel
from backdrift.inverse.svd import SVD
from backdrift.posterior import expand, flat


class Identity(LinearMeasurement):
    """The picture itself, with noise: denoising; with `RoundedNoise`, quantisation to a few levels. y has x's shape."""

    def __init__(self, event_shape: Sequence[int], noise: float | NoiseModel):
        self.event_shape = self.shape = tuple(event_shape)
        self.noise = noise_model(noise)

    def forward(self, x):
        return x

    def adjoint(self, v):
        return v

    def solve(self, right, scale):
        return right / (expand(scale, right) + self.variance(right))

    def pinv(self, y):
        return y

    def svd(self):
        values = torch.ones(math.prod(self.shape), dtype=torch.float64)
        return SVD(values, flat, lambda c: c.view(-1, *self.event_shape), flat)


class Inpaint(LinearMeasurement):
    """The pixels where a mask is 1, in a row.

    mask: of zeros and ones, (*event), or (H, W) or (1, H, W) for all channels of event_shape (C, H, W). y: (m,).

    Raises `UserError` for a mask of other values or another size, or one that shows nothing.
    """

    def __init__(self, mask: Tensor, noise: float | NoiseModel, event_shape: Sequence[int] | None = None):
        self.event_shape = tuple(mask.shape) if event_shape is None else tuple(event_shape)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise UserError("A mask of a measurement is 1 where a pixel is seen and 0 elsewhere.")
        try:
            mask = mask.expand(self.event_shape)
        except RuntimeError:
            raise UserError(f"A mask of shape {tuple(mask.shape)} does not fit events {self.event_shape}.") from None
        self.index = mask.flatten().nonzero().squeeze(1)
        if len(self.index) == 0:
            raise UserError("The mask shows no pixel at all.")
        self.shape, self.noise = (len(self.index),), noise_model(noise)

    def forward(self, x):
        return flat(x)[:, self.index.to(x.device)]

    def adjoint(self, v):
        x = v.new_zeros(len(v), math.prod(self.event_shape))
        x[:, self.index.to(v.device)] = v
        return x.view(len(v), *self.event_shape)

    def solve(self, right, scale):
        return right / (expand(scale, right) + self.variance(right))

    def pinv(self, y):
        return self.adjoint(y)

    def svd(self):
        return SVD(torch.ones(len(self.index), dtype=torch.float64), self.forward, self.adjoint, flat)


class Downsample(LinearMeasurement):
    """The averages of squares of `factor` by `factor` pixels: y (C, H / factor, W / factor).

    Raises `UserError` where the factor does not divide the sides.
    """

    def __init__(self, factor: int, event_shape: Sequence[int], noise: float | NoiseModel):
        channels, height, width = event_shape
        if factor < 1 or height % factor or width % factor:
            raise UserError(f"A factor of {factor} does not divide pictures of {height} x {width} pixels.")
        self.factor, self.event_shape = factor, (channels, height, width)
        self.shape, self.noise = (channels, height // factor, width // factor), noise_model(noise)

    def forward(self, x):
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, v):
        return self.pinv(v) / self.factor**2

    def solve(self, right, scale):
        # the rows do not overlap: A A^T = 1 / factor^2
        return right / (expand(scale, right) / self.factor**2 + self.variance(right))

    def pinv(self, y):
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)

    def svd(self):
        k = self.factor
        return SVD(
            torch.full((math.prod(self.shape),), 1 / k, dtype=torch.float64),
            right=lambda x: flat(self.forward(x)) * k,
            back=lambda c: self.pinv(c.view(-1, *self.shape)) / k,
            left=flat,
        )


class Clip(Measurement):
    """A detector that saturates: clip(gain x, low, high), as in photographs of bright scenes."""

    def __init__(
        self,
        event_shape: Sequence[int],
        noise: float | NoiseModel,
        gain: float = 2.0,
        low: float = -1.0,
        high: float = 1.0,
    ):
        if not (gain > 0 and low < high):
            raise UserError(f"Clipping needs a positive gain and low < high, not {gain}, {low} and {high}.")
        self.event_shape, self.shape = tuple(event_shape), tuple(event_shape)
        self.gain, self.low, self.high, self.noise = gain, low, high, noise_model(noise)

    def forward(self, x):
        return (self.gain * x).clamp(self.low, self.high)
