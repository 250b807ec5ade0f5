"""Draws from a posterior put together: mean, spread, and how far both can be believed where the truth is known.

What a calibrated sampler must show, whatever the problem:

    coverage      the truth lies between the k-th smallest and the k-th largest of n draws in (n + 1 - 2k) / (n + 1) of
                  the pixels, exactly, as it is one more draw from the same law
    ratio         a draw's squared error is twice the posterior's variance, the mean of n draws' 1 + 1 / n times it
    consistency   |y - A x|^2 / Gamma is near the size of y, averaged over draws: below it they follow the noise
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.inverse.measurement import Measurement
from backdrift.inverse.noise import GaussianNoise
from backdrift.inverse.sampler import PosteriorSampler
from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.sample.plan import Step


@dataclass(frozen=True)
class Reconstruction:
    """samples: (n, *event), n of at least 2, for one y (*shape) under `measurement`."""

    samples: Tensor
    measurement: Measurement
    y: Tensor

    @property
    def mean(self) -> Tensor:
        """(*event)."""
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor:
        """Of each pixel over the draws, (*event)."""
        return self.samples.std(0)

    def consistency(self) -> float | None:
        """|y - A x|^2 / Gamma over the size of y, averaged over the draws; None where the noise is not Gaussian."""
        if not isinstance(self.measurement.noise, GaussianNoise):
            return None
        gap = self.y.to(self.samples) - self.measurement.forward(self.samples)
        return float((gap.square() / self.measurement.noise.variance(gap)).mean())

    def covered(self, truth: Tensor, share: float = 0.9) -> tuple[Tensor, float]:
        """(where the truth lies between two ranks of the draws, (*event) bool; the share that should).

        share: what is wanted; the ranks are those that come nearest. `truth`: (*event).
        """
        n = len(self.samples)
        k = max(1, round((1 - share) * (n + 1) / 2))
        ordered = self.samples.sort(0)[0]
        inside = (truth >= ordered[k - 1]) & (truth <= ordered[n - k])
        return inside, (n + 1 - 2 * k) / (n + 1)

    def ratio(self, truth: Tensor) -> float:
        """A draw's squared error over the mean's, as it would be over the mean of endless draws: 2 if calibrated."""
        n = len(self.samples)
        of_mean = (self.mean - truth).square().mean() - self.std.square().mean() / n
        return float((self.samples - truth).square().mean() / of_mean)


def reconstruct(
    denoiser: Denoiser,
    sampler: PosteriorSampler,
    measurement: Measurement,
    y: Tensor,
    n: int,
    *,
    steps: int = 100,
    seed: int = 0,
    batch: int = 64,
    on_step: Callable[[Step], None] | None = None,
) -> Reconstruction:
    """n draws of x_0 given y, `batch` at a time, which changes nothing but memory.

    Raises `UserError` for fewer than 2 draws, and as the sampler does.
    """
    if n < 2 or batch < 1:
        raise UserError(f"A spread needs at least 2 draws, in batches of at least 1, not {n} and {batch}.")
    parts = []
    for low in range(0, n, batch):
        index = torch.arange(low, min(low + batch, n))
        parts.append(
            sampler(denoiser, measurement, y, len(index), steps=steps, noise=Noise(seed, index), on_step=on_step)
        )
    samples = torch.cat(parts)
    if not bool(torch.isfinite(flat(samples)).all()):
        raise UserError(f"{type(sampler).__name__} left the range of numbers; try more steps.")
    return Reconstruction(samples, measurement, y)


class Told(Denoiser):
    """`denoiser` with its condition bound: {"label": (1,), ..}, the same for every state."""

    def __init__(self, denoiser: Denoiser, cond: dict[str, Tensor]):
        super().__init__()
        self.denoiser, self.cond = denoiser, cond
        self.process, self.event_shape = denoiser.process, denoiser.event_shape

    def forward(self, xt, t, cond=None):
        told = {name: value.expand(len(xt), *value.shape[1:]).to(xt.device) for name, value in self.cond.items()}
        return self.denoiser(xt, t, {**told, **(cond or {})})
