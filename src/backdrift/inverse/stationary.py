"""Gaussian textures of picture size with their exact posteriors: truth for blur, super-resolution and MRI.

A stationary Gaussian on a torus, N(mean, C) with C a convolution, is diagonal in the Fourier domain, and so are all its
noised versions. Given x_t it is N(m_t, C_t) with

    m_t = mean + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha mean),  C_t = sigma^2 C (alpha^2 C + sigma^2)^-1,

stationary again. A measurement adds C_t A^T (A C_t A^T + Gamma)^-1 (y - A m_t), and A C_t A^T is diagonal, too: for
a blur at the same frequencies, for averages of squares (which see a coarser stationary field) at those of the coarser
grid, for Fourier samples at the sampled ones. So the posterior's denoiser, its draws and p(y) are closed forms at any
size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.exact.base import Blurred, Distribution, normalised
from backdrift.exact.denoiser import TensorDenoiser
from backdrift.inverse.fourier import Blur, FourierSamples
from backdrift.inverse.measurement import LinearMeasurement
from backdrift.inverse.noise import GaussianNoise
from backdrift.inverse.pixels import Downsample
from backdrift.posterior import flat
from backdrift.process import Gaussian


class Stationary(Distribution):
    """N(mean, C) with C a convolution on the torus, the same for each channel, the channels independent.

    spectrum: (H, W), C's eigenvalues as `torch.fft.fft2` orders frequencies, positive, the same at a frequency and its
    mirror image; `power_law` makes one. event_shape: (C, H, W). mean: of every pixel. Answers are in float64.

    Raises `UserError` for a spectrum of another shape, negative, or without that symmetry.
    """

    def __init__(self, spectrum: Tensor, event_shape: Sequence[int], mean: float = 0.0):
        spectrum = spectrum.double()
        self.event_shape, self.mean = tuple(event_shape), float(mean)
        if tuple(spectrum.shape) != self.event_shape[1:]:
            raise UserError(f"A spectrum of pictures {self.event_shape} cannot be {tuple(spectrum.shape)}.")
        if not bool((spectrum > 0).all()) or not torch.allclose(spectrum, _mirrored(spectrum)):
            raise UserError("A spectrum is positive, and the same at a frequency and its mirror image.")
        self.spectrum, self.dtype, self.labels, self.degenerate = spectrum, torch.float64, None, False
        self.log_weights = normalised(torch.ones(1), 1)

    def denoiser(self, process):
        if not isinstance(process, Gaussian) or process.project is not None:
            raise UserError("Stationary fields have denoisers under process.Gaussian without a projection only.")
        return TensorDenoiser(self, process)

    def pictures(self, x: Tensor) -> Tensor:
        """(B, D) as (B, C, H, W)."""
        return x.view(-1, *self.event_shape)

    def at(self, x, alpha, sigma, wanted=None):
        spectrum = torch.fft.fft2(self.pictures(x) - self.mean * alpha.view(-1, 1, 1, 1), norm="ortho")
        total = (alpha**2).view(-1, 1, 1, 1) * self.spectrum + (sigma**2).view(-1, 1, 1, 1)
        mean = self.mean + _real(alpha.view(-1, 1, 1, 1) * self.spectrum / total * spectrum)
        logs = flat(spectrum.abs().square() / total + (2 * math.pi * total).log()).sum(1)
        return Blurred(-logs / 2, flat(mean), flat(-_real(spectrum / total)))

    def weights_at(self, x, alpha, sigma, wanted=None):
        return x.new_ones(len(x), 1)

    def take(self, index, noise):
        white = noise.normal(torch.empty(len(index), *self.event_shape, dtype=torch.float64))
        return self.mean + _real(self.spectrum.sqrt() * torch.fft.fft2(white, norm="ortho"))

    def scales(self):
        centre = torch.full((math.prod(self.event_shape),), self.mean, dtype=torch.float64)
        return centre, float(self.spectrum.mean().sqrt()), float(self.spectrum.min().sqrt())

    def given(self, measurement, y):
        """The posterior under a `Blur`, `Downsample` or `FourierSamples` with one Gaussian noise for all of y.

        Raises `UserError` for any other.
        """
        served = isinstance(measurement, Blur | Downsample | FourierSamples)
        if not (served and isinstance(measurement.noise, GaussianNoise) and measurement.noise.std.ndim == 0):
            raise UserError("Stationary fields have closed-form posteriors under Blur, Downsample and FourierSamples.")
        measurement.check_events(self.event_shape)
        return Observed(self, measurement, measurement.batched(y)[:1].double())


class Observed(Distribution):
    """A stationary field given y, as `Stationary.given` returns it. mean: (C, H, W). log_evidence: log p(y)."""

    def __init__(self, prior: Stationary, measurement: LinearMeasurement, y: Tensor):
        self.prior, self.measurement, self.y = prior, measurement, y
        self.event_shape, self.dtype, self.labels, self.degenerate = prior.event_shape, prior.dtype, None, False
        self.log_weights = prior.log_weights
        centre = torch.full((1, *self.event_shape), prior.mean, dtype=torch.float64)
        mean, evidence = self._seen(centre, prior.spectrum[None], y)
        self.mean, self.log_evidence = mean[0], float(evidence)

    def denoiser(self, process):
        if not isinstance(process, Gaussian) or process.project is not None:
            raise UserError("Stationary fields have denoisers under process.Gaussian without a projection only.")
        return TensorDenoiser(self, process)

    def _seen(self, centre: Tensor, spectrum: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """For beliefs N(centre, C), C of spectrum (B, H, W): the means given y, and log p(y), (B,)."""
        gap = y - self.measurement.forward(centre)
        total = self._variances(spectrum) + float(self.measurement.noise.std) ** 2
        modes, back = self._modes(gap)
        gain = self.measurement.adjoint(back(modes / total))
        mean = centre + _real(spectrum[:, None] * torch.fft.fft2(gain, norm="ortho"))
        logs = flat(modes.abs().square() / total + (2 * math.pi * total).log().expand(modes.shape)).sum(1)
        return mean, -logs / 2

    def _modes(self, v: Tensor):
        """v in the basis in which A C A^T is diagonal, and the way back."""
        if isinstance(self.measurement, FourierSamples):
            return v, lambda modes: modes
        return torch.fft.fft2(v, norm="ortho"), _real

    def _variances(self, spectrum: Tensor) -> Tensor:
        """A C A^T in that basis, (B, 1, ..)."""
        if isinstance(self.measurement, FourierSamples):
            half = spectrum[..., : spectrum.shape[-1] // 2 + 1]
            return torch.stack([self.measurement.along(row) for row in half])[:, None]
        # on a grid of its own A C A^T is a convolution: the transform of what it makes of one pixel
        pixel = spectrum.new_zeros(len(spectrum), *self.measurement.shape)
        pixel[..., 0, 0] = 1
        spread = _real(spectrum[:, None] * torch.fft.fft2(self.measurement.adjoint(pixel), norm="ortho"))
        return torch.fft.fft2(self.measurement.forward(spread)).real[:, :1]

    def at(self, x, alpha, sigma, wanted=None):
        prior = self.prior.at(x, alpha, sigma)
        a, s = (v.view(-1, 1, 1) for v in (alpha**2, sigma**2))
        spectrum = s * self.prior.spectrum / (a * self.prior.spectrum + s)
        mean, log_y = self._seen(self.prior.pictures(prior.mean), spectrum, self.y)
        score = (alpha[:, None] * flat(mean) - x) / (sigma**2)[:, None].clamp_min(1e-30)  # Tweedie
        return Blurred(prior.log_prob + log_y - self.log_evidence, flat(mean), score)

    def weights_at(self, x, alpha, sigma, wanted=None):
        return self.prior.weights_at(x, alpha, sigma)

    def take(self, index, noise):
        # a draw of the prior and of its measurement, moved by what the measurement lacks
        x = self.prior.take(index, noise)
        v = noise.at("y").normal(torch.empty(len(index), *self.measurement.shape, dtype=torch.float64))
        y = self.y - float(self.measurement.noise.std) * v
        return self._seen(x, self.prior.spectrum[None], y)[0]

    def scales(self):
        _, scale, finest = self.prior.scales()
        return self.mean.flatten(), scale, min(finest, scale)

    def given(self, measurement, y):
        """Not in closed form. Raises `UserError`."""
        raise UserError("A stationary field that was measured once has no second closed-form posterior here.")


def power_law(height: int, width: int, exponent: float = 3.0, corner: float = 2.0, std: float = 0.5) -> Tensor:
    """A spectrum (H, W) proportional to (k^2 + corner^2)^(-exponent / 2), k in cycles a picture, float64.

    Natural pictures have an exponent near 2 or 3. std: of a pixel. Raises `UserError` for a std that is not positive.
    """
    if not std > 0:
        raise UserError(f"A texture's standard deviation is positive, not {std}.")
    down, across = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in (height, width))
    spectrum = (down[:, None] ** 2 + across[None] ** 2 + corner**2) ** (-exponent / 2)
    return std**2 * spectrum / spectrum.mean()


def _mirrored(spectrum: Tensor) -> Tensor:
    return spectrum.flip(0, 1).roll((1, 1), (0, 1))


def _real(spectrum: Tensor) -> Tensor:
    return torch.fft.ifft2(spectrum, norm="ortho").real
