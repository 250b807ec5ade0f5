"""What cameras do to pictures after the lens: JPEG, rounding, a response curve over a blur.

JPEG is an orthonormal cosine transform of blocks of 8 x 8 pixels whose coefficients are rounded, coarsely where the eye
sees little. So it is a linear measurement (with an adjoint, a pseudo-inverse, singular values of 1) whose detector
rounds: p(y | x) is the mass of the rounding's cell, exactly, and needs no derivative of a rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.inverse.fourier import Blur
from backdrift.inverse.measurement import LinearMeasurement, Measurement, noise_model
from backdrift.inverse.noise import NoiseModel, RoundedNoise
from backdrift.inverse.svd import SVD
from backdrift.posterior import expand, flat

# ITU-T T.81, annex K, table K.1: the steps of luminance at quality 50
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
LEVELS = 127.5  # levels of 8 bits in a unit of [-1, 1]


def jpeg_steps(quality: int) -> Tensor:
    """The steps of the 8 x 8 coefficients at a quality from 1 to 100, in units of [-1, 1], float64.

    The scale is the one that encoders share. Raises `UserError` for another quality.
    """
    if not 1 <= quality <= 100:
        raise UserError(f"A JPEG quality lies between 1 and 100, not {quality}.")
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = torch.tensor(LUMINANCE, dtype=torch.float64)
    return ((table * scale + 50) / 100).floor().clamp(1, 255) / LEVELS


class JPEG(LinearMeasurement):
    """The coefficients of a picture's 8 x 8 blocks, rounded as JPEG rounds them: y (C, H, W), each where its block is.

    quality: 1 to 100, with the luminance steps in every channel. std: noise before the rounding, which likelihoods with
    a gradient need; 0 is JPEG itself. noise: instead, another model, such as `GaussianNoise(jpeg_steps(50).repeat(..) /
    12**0.5)`, under which the samplers for Gaussian noise serve as well.

    `pinv(y)` is the decoded picture. Raises `UserError` for sides that 8 does not divide.
    """

    def __init__(
        self, event_shape: Sequence[int], quality: int = 30, std: float = 0.0, noise: NoiseModel | None = None
    ):
        channels, height, width = event_shape
        if height % 8 or width % 8:
            raise UserError(f"JPEG takes pictures whose sides are multiples of 8, not {height} x {width}.")
        self.event_shape = self.shape = (channels, height, width)
        steps = jpeg_steps(quality).repeat(height // 8, width // 8)
        self.noise = RoundedNoise(steps, std) if noise is None else noise
        k = torch.arange(8, dtype=torch.float64)
        self.basis = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) / 2
        self.basis[0] /= math.sqrt(2)

    def _transform(self, x: Tensor, basis: Tensor) -> Tensor:
        channels, height, width = self.event_shape
        blocks = x.reshape(-1, channels, height // 8, 8, width // 8, 8)
        basis = basis.to(x)
        return torch.einsum("ij,bchjwl,kl->bchiwk", basis, blocks, basis).reshape(-1, *self.event_shape)

    def forward(self, x):
        return self._transform(x, self.basis)

    def adjoint(self, v):
        return self._transform(v, self.basis.mT)

    def solve(self, right, scale):
        return right / (expand(scale, right) + self.variance(right))

    def pinv(self, y):
        return self.adjoint(y)

    def svd(self):
        values = torch.ones(math.prod(self.shape), dtype=torch.float64)
        return SVD(values, lambda x: flat(self.forward(x)), lambda c: self.adjoint(c.view(-1, *self.shape)), flat)


class ResponseBlur(Measurement):
    """A blur of light, seen through a camera's response: y = f(blur(f^-1(x))), f(light) = light^(1 / gamma).

    Pixels in [-1, 1] are taken to lie on the response curve; bright ones spill over dark ones more than in a linear
    blur of the pixels. gamma = 1 is `Blur`. Light below 0.001 counts as that, where f has no slope.
    """

    def __init__(self, kernel: Tensor, event_shape: Sequence[int], noise: float | NoiseModel, gamma: float = 2.2):
        if not gamma > 0:
            raise UserError(f"A response curve has a positive gamma, not {gamma}.")
        self.blur, self.gamma = Blur(kernel, event_shape, 1.0), gamma
        self.event_shape, self.shape, self.noise = self.blur.event_shape, self.blur.shape, noise_model(noise)

    def forward(self, x):
        light = ((x + 1) / 2).clamp_min(1e-3) ** self.gamma
        return 2 * self.blur.forward(light).clamp_min(1e-3**self.gamma) ** (1 / self.gamma) - 1
