"""What every estimate of a log-likelihood returns, what it checks first, and the squared error that two of them share.

For the Gaussian process everything is the error of the denoiser, e(g) = x_0 - E[x_0 | x_t], at the signal-to-noise
ratio g = alpha^2 / sigma^2. Its square is averaged over a noise eps and its opposite, which removes all odd powers of
eps, and the noise of the even one is removed by what it would be for Gaussian data of the data's variance v, where

    e = x_0 / (1 + v g) - sqrt(g) v / (1 + v g) eps:   subtract g v^2 / (1 + v g)^2 (eps^2 - 1), which has mean zero.

So on Gaussian data of variance v no randomness is left, and elsewhere the estimate stays unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.objective.times import first_time
from backdrift.posterior import TensorPosterior, expand, flat
from backdrift.process.gaussian import Gaussian


@dataclass(frozen=True)
class LogLikelihood:
    """log p(x) of B events, in nats, float64.

    map: (B, *event), the share of each element; the shares add up to the total. error: (B,), the standard error of
    the total over the estimate's own random draws; 0 where it draws nothing.
    """

    map: Tensor
    error: Tensor

    @property
    def nats(self) -> Tensor:
        """log p(x), (B,)."""
        return flat(self.map).sum(1)

    @property
    def bits(self) -> Tensor:
        """-log2 p(x) per dimension, (B,)."""
        return -self.nats / (self.dimensions * math.log(2))

    @property
    def dimensions(self) -> int:
        """The number of elements of an event."""
        return flat(self.map).shape[1]


def averaged(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of independent estimates (B, *event), and the standard error (B,) of its total; 0 for one estimate."""
    totals = torch.stack([flat(one).sum(1) for one in maps])
    count = len(maps)
    error = totals.std(0) / math.sqrt(count) if count > 1 else torch.zeros_like(totals[0])
    return sum(maps) / count, error


class Pair(NamedTuple):
    """What the denoiser says about x_t made from eps and from -eps.

    beliefs: the two posteriors. errors: e^2 of each, (B, *event) float64. control: of mean zero, to be subtracted.
    """

    beliefs: tuple[TensorPosterior, TensorPosterior]
    errors: tuple[Tensor, Tensor]
    control: Tensor

    @property
    def square(self) -> Tensor:
        """The estimate of E[e^2], (B, *event) float64; it may be negative."""
        return (self.errors[0] + self.errors[1]) / 2 - self.control


def pair(denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, scale: float, cond: Mapping | None) -> Pair:
    """Both evaluations at the times t (B,). scale: the data's standard deviation, sqrt(v) above."""
    alpha, sigma = denoiser.process.schedule.alpha_sigma(t)
    signal, noise = expand(alpha, x0) * x0, expand(sigma, x0) * eps
    beliefs = denoiser(signal + noise, t, cond), denoiser(signal - noise, t, cond)
    errors = tuple((x0 - belief.mean).double().square() for belief in beliefs)
    # g v^2 / (1 + v g)^2 without dividing by sigma or alpha
    share = (scale**2 * alpha * sigma / (sigma**2 + (scale * alpha) ** 2)) ** 2
    return Pair(beliefs, errors, expand(share, errors[0]) * (eps.double().square() - 1))


def checked(
    denoiser: Denoiser, x: Tensor, cond: Mapping | None, noise: Noise | None, first: float | None
) -> tuple[Noise, float]:
    """The noise and the first time to use; by default the samples 0..B-1 of seed 0, and `objective.times.first_time`.

    Raises `UserError` for a process, events, conditions or a first time that have no likelihood here.
    """
    process = denoiser.process
    if not isinstance(process, Gaussian) or process.project is not None:
        raise UserError("A likelihood needs a process.Gaussian without a projection.")
    if tuple(x.shape[1:]) != tuple(denoiser.event_shape) or not len(x):
        raise UserError(f"The denoiser knows events {tuple(denoiser.event_shape)}, but the data are {tuple(x.shape)}.")
    if not x.is_floating_point() or not bool(x.isfinite().all()):
        raise UserError("The data must be floating-point numbers, all finite.")
    for name, value in (cond or {}).items():
        if isinstance(value, Tensor) and value.ndim and len(value) != len(x):
            raise UserError(f"There are {len(value)} values of {name} for {len(x)} samples.")
    first = first_time(process.schedule) if first is None else first
    if not (0 <= first < 1 and process.schedule.alpha_sigma(first)[1] > 0):
        raise UserError(f"The first time must lie in [0, 1) and have noise, not {first}.")
    return Noise.of(0, len(x)) if noise is None else noise, first


def at_least(least: int, value: int, what: str) -> None:
    """Raises `UserError` where `value` is below `least`."""
    if value < least:
        raise UserError(f"A likelihood needs at least {least} {what}, not {value}.")
