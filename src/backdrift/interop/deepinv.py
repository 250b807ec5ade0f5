"""deepinv's physics as our measurements and ours as its physics; our posterior samplers in its benchmarks.

    meas = bd.interop.deepinv.measurement(physics, (1, 64, 64))       # y ~ physics(x)
    x = bd.inverse.PiGDM()(denoiser, meas, y, 8, steps=100, noise=bd.Noise.of(0, 8))
    physics = bd.interop.deepinv.physics(meas)                        # for its samplers
    model = bd.interop.deepinv.reconstructor(bd.inverse.PiGDM(), denoiser)(y, physics)

Both work on the same numbers: a physics sees x as it is. deepinv's own denoisers take pictures in [0, 1], where ours
take [-1, 1]; `denoiser` makes that change. Written for deepinv 0.4 and 0.5 (extra "deepinv").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.interop.extras import need
from backdrift.interop.foreign import mean_at
from backdrift.inverse.measurement import LinearMeasurement, Measurement, noise_model
from backdrift.inverse.noise import GaussianNoise, NoiseModel, PoissonNoise
from backdrift.inverse.sampler import PosteriorSampler
from backdrift.noise import Noise


def measurement(physics, event_shape: Sequence[int], noise: float | NoiseModel | None = None) -> Measurement:
    """A deepinv physics as a measurement of events (C, H, W); linear where it is one.

    noise: by default what its noise model says, Gaussian or Poisson. Raises `UserError` where that is neither and none
    is given, and for a physics whose measurements are not one tensor.
    """
    deepinv = need("deepinv", "deepinv")
    linear = isinstance(physics, deepinv.physics.LinearPhysics)
    return (ForeignLinear if linear else ForeignMeasurement)(physics, event_shape, noise)


class ForeignMeasurement(Measurement):
    """A(x) by a deepinv physics, without its noise."""

    def __init__(self, physics, event_shape: Sequence[int], noise: float | NoiseModel | None):
        self.physics, self.event_shape = physics, tuple(event_shape)
        self.noise = _noise(physics) if noise is None else noise_model(noise)
        y = self.forward(torch.zeros(1, *self.event_shape))
        if not isinstance(y, Tensor):
            raise UserError("This physics gives several tensors; make a measurement of each and stack them.")
        self.shape = tuple(y.shape[1:])

    def forward(self, x):
        # its kernels and masks are in float32
        y = self.physics.A(x.float())
        return y.to(x.dtype) if isinstance(y, Tensor) else y


class ForeignLinear(ForeignMeasurement, LinearMeasurement):
    """The same, with its adjoint."""

    def adjoint(self, v):
        return self.physics.A_adjoint(v.float()).to(v.dtype)

    def vjp(self, x, v):
        return self.adjoint(v)


def _noise(physics) -> NoiseModel:
    deepinv = need("deepinv", "deepinv")
    model = physics.noise_model
    if isinstance(model, deepinv.physics.GaussianNoise):
        return GaussianNoise(float(torch.as_tensor(model.sigma).flatten()[0]))
    if isinstance(model, deepinv.physics.PoissonNoise):
        return PoissonNoise(1 / float(torch.as_tensor(model.gain).flatten()[0]))
    raise UserError(f"The law of {type(model).__name__} is not known here; give noise=, such as a standard deviation.")


def physics(meas: Measurement):
    """A measurement of ours as a deepinv physics, linear where it is; with its noise, if that is Gaussian.

    Raises `UserError` for other noise, or where deepinv is missing.
    """
    deepinv = need("deepinv", "deepinv")
    if not (isinstance(meas.noise, GaussianNoise) and meas.noise.std.ndim == 0):
        raise UserError("deepinv is given Gaussian noise of one standard deviation only.")
    model = deepinv.physics.GaussianNoise(sigma=float(meas.noise.std))
    if not isinstance(meas, LinearMeasurement):
        return deepinv.physics.Physics(A=lambda x, **_: meas.forward(x), noise_model=model)
    made = deepinv.physics.LinearPhysics(
        A=lambda x, **_: meas.forward(x), A_adjoint=lambda y, **_: meas.adjoint(y), noise_model=model
    )
    # by our pseudo-inverse, which is often a closed form
    made.A_dagger = lambda y, **_: meas.pinv(y)
    return made


class UnitRange(nn.Module):
    """Our denoiser in deepinv's call: pictures in [0, 1] and the noise's standard deviation there."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: float | Tensor, **_) -> Tensor:
        """E[x_0 | x_0 + sigma eps = x], (B, C, H, W); sigma: a number, or anything with one or B of them."""
        level = 2 * torch.as_tensor(sigma, dtype=torch.float64).cpu().reshape(-1).expand(len(x))
        mean = mean_at(self.denoiser, 2 * x - 1, torch.ones_like(level), level, None)
        return ((mean + 1) / 2).to(x.dtype)


def denoiser(ours: Denoiser) -> UnitRange:
    """Our denoiser for deepinv's samplers."""
    return UnitRange(ours)


def reconstructor(sampler: PosteriorSampler, denoiser: Denoiser, *, steps: int = 100, seed: int = 0):
    """A posterior sampler as a deepinv `Reconstructor`, called with (y, physics): one draw for each y.

    Draws are keyed by their place in the batch and the seed. Raises `UserError` where deepinv is missing.
    """
    deepinv = need("deepinv", "deepinv")

    class Sampled(deepinv.models.Reconstructor):
        """The sampler, with the prior bound to it."""

        def forward(self, y: Tensor, physics, **_) -> Tensor:
            meas = measurement(physics, denoiser.event_shape)
            return sampler(denoiser, meas, y, len(y), steps=steps, noise=Noise.of(seed, len(y)))

    return Sampled()
