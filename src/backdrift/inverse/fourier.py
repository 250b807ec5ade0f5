"""Measurements that are diagonal, or nearly, in the Fourier domain: blur, magnetic resonance, phase retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.inverse.measurement import LinearMeasurement, Measurement, noise_model
from backdrift.inverse.noise import NoiseModel
from backdrift.inverse.svd import SVD
from backdrift.posterior import expand, flat


class Blur(LinearMeasurement):
    """Convolution with a kernel on a torus: what leaves on the right comes back on the left. y has x's shape.

    kernel: (h, w) with odd sides, centred; `gaussian_kernel` makes one.
    """

    def __init__(self, kernel: Tensor, event_shape: Sequence[int], noise: float | NoiseModel):
        channels, height, width = event_shape
        h, w = kernel.shape
        if h % 2 == 0 or w % 2 == 0 or h > height or w > width:
            raise UserError(f"A blur kernel has odd sides of at most the picture's, not {h} x {w}.")
        self.event_shape = self.shape = (channels, height, width)
        self.noise = noise_model(noise)
        padded = torch.zeros(height, width, dtype=torch.float64)
        padded[:h, :w] = kernel.double()
        self.response = torch.fft.rfft2(padded.roll((-(h // 2), -(w // 2)), (0, 1)))

    def _apply(self, x: Tensor, response: Tensor) -> Tensor:
        response = response.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64).to(x.device)
        return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=x.shape[-2:])

    def forward(self, x):
        return self._apply(x, self.response)

    def adjoint(self, v):
        return self._apply(v, self.response.conj())

    def solve(self, right, scale):
        if self.noise.std.ndim:
            return super().solve(right, scale)
        variance = float(self.noise.std**2)
        power = self.response.abs().square().to(right)
        spectrum = torch.fft.rfft2(right) / (expand(scale, right) * power + variance)
        return torch.fft.irfft2(spectrum, s=right.shape[-2:])

    def pinv(self, y):
        power = self.response.abs().square()
        keep = power > 1e-12 * power.max()
        return self._apply(y, torch.where(keep, self.response.conj() / power.where(keep, torch.ones_like(power)), 0.0))

    def svd(self):
        # real and imaginary parts in the Fourier basis; U is V with each frequency turned by the kernel's phase
        basis = FourierSamples(torch.ones(self.shape[1:]), self.shape, 1.0)
        size = self.response.abs()
        turn = torch.where(size > 0, self.response / size.where(size > 0, torch.ones_like(size)), 1.0)
        # A has the size as its response where the phase is taken out: its values are those of the basis pictures
        values = basis.along(size).repeat(self.shape[0])
        kept = (values > 1e-6 * values.max()).nonzero().squeeze(1)

        def right(x: Tensor) -> Tensor:
            return flat(basis.forward(x))[:, kept.to(x.device)]

        def back(c: Tensor) -> Tensor:
            whole = c.new_zeros(len(c), len(values))
            whole[:, kept.to(c.device)] = c
            return basis.adjoint(whole.view(len(c), *basis.shape))

        return SVD(values[kept], right, back, left=lambda y: right(self._apply(y, turn.conj())))


class FourierSamples(LinearMeasurement):
    """Some coefficients of the orthonormal Fourier transform of real pictures, as in magnetic resonance imaging.

    mask: (H, W) of zeros and ones over frequencies as `torch.fft.fft2` orders them. Of a frequency and its mirror
    image, which hold the same, one is kept, with weight sqrt(2). y: (C, m), real and imaginary parts in a row, so that
    A's rows are orthonormal and white noise stays white.

    Raises `UserError` for a mask of another shape, or one that shows nothing.
    """

    def __init__(self, mask: Tensor, event_shape: Sequence[int], noise: float | NoiseModel):
        channels, height, width = event_shape
        if tuple(mask.shape) != (height, width):
            raise UserError(f"A mask over frequencies of {height} x {width} pixels cannot be {tuple(mask.shape)}.")
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        place, mirror = rows * width + columns, (-rows % height) * width + (-columns % width)
        seen = mask.bool() | mask.bool().flatten()[mirror.flatten()].view(height, width)
        self.paired = place[seen & (place < mirror)]
        self.single = place[seen & (place == mirror)]
        m = 2 * len(self.paired) + len(self.single)
        if m == 0:
            raise UserError("The mask shows no frequency at all.")
        self.event_shape, self.shape, self.noise = (channels, height, width), (channels, m), noise_model(noise)

    def forward(self, x):
        spectrum = torch.fft.fft2(x, norm="ortho").flatten(2)
        pairs = spectrum[..., self.paired.to(x.device)] * 2**0.5
        return torch.cat([pairs.real, pairs.imag, spectrum[..., self.single.to(x.device)].real], -1)

    def adjoint(self, v):
        n = len(self.paired)
        kind = torch.complex128 if v.dtype == torch.float64 else torch.complex64
        _, height, width = self.event_shape
        spectrum = torch.zeros(*v.shape[:2], height * width, dtype=kind, device=v.device)
        # the real part of the inverse transform shares a coefficient out to its mirror image
        spectrum[..., self.paired.to(v.device)] = torch.complex(v[..., :n], v[..., n : 2 * n]) * 2**0.5
        spectrum[..., self.single.to(v.device)] = v[..., 2 * n :].to(kind)
        return torch.fft.ifft2(spectrum.view(*v.shape[:2], height, width), norm="ortho").real

    def solve(self, right, scale):
        return right / (expand(scale, right) + self.variance(right))

    def pinv(self, y):
        return self.adjoint(y)

    def svd(self):
        size = math.prod(self.shape)
        return SVD(
            torch.ones(size, dtype=torch.float64),
            right=lambda x: flat(self.forward(x)),
            back=lambda c: self.adjoint(c.view(-1, *self.shape)),
            left=flat,
        )

    def along(self, response: Tensor) -> Tensor:
        """A real response over `torch.fft.rfft2`'s frequencies, (m,), at those of y's entries."""
        _, height, width = self.event_shape
        pairs, single = (torch.stack([at // width, at % width]) for at in (self.paired, self.single))

        def value(at: Tensor) -> Tensor:
            rows, columns = at
            mirrored = columns > width // 2
            rows, columns = (torch.where(mirrored, -k % n, k) for k, n in ((rows, height), (columns, width)))
            return response[rows, columns]

        return torch.cat([value(pairs), value(pairs), value(single)])


class PhaseRetrieval(Measurement):
    """Magnitudes of the Fourier transform of the picture in a frame of zeros, of `oversampling` times its sides.

    A picture, its mirror image and its shifts give the same y, and so does its negative: the posterior has modes.
    """

    def __init__(self, event_shape: Sequence[int], noise: float | NoiseModel, oversampling: float = 2.0):
        if oversampling < 1:
            raise UserError(f"Oversampling is at least 1, not {oversampling}.")
        channels, height, width = event_shape
        self.event_shape = (channels, height, width)
        self.size = round(height * oversampling), round(width * oversampling)
        self.shape, self.noise = (channels, *self.size), noise_model(noise)

    def forward(self, x):
        return torch.fft.fft2(x, s=self.size, norm="ortho").abs()


def gaussian_kernel(std: float, radius: int | None = None) -> Tensor:
    """A Gaussian kernel (2 radius + 1, same), float64, summing to 1; radius: 3 std by default."""
    if not std > 0:
        raise UserError(f"A Gaussian kernel needs a positive standard deviation, not {std}.")
    radius = max(1, round(3 * std)) if radius is None else radius
    line = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * std**2))
    kernel = line[:, None] * line[None]
    return kernel / kernel.sum()
