"""The scores that KLIP has to beat: what else a reconstruction says about being unlike the training data.

All are computed from the same posterior draws. With m the posterior's mean and g = alpha^2 / sigma^2:

    residual         |y - A(m)|^2 in units of the noise; its map is the smallest change of m that would explain it
    reconstruction   the mean over noise levels of |m - D(m_t)|^2 (Graham et al. 2023, arXiv:2211.07740)
    likelihood       -log p(m) by the I-MMSE integral over the same levels; typicality is its two-sided p-value
    spread           the posterior's variance
    mahalanobis      (m - mean)^T C^-1 (m - mean), with the training pictures' mean and shrunken covariance
    mean picture     |m - mean|^2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.inverse.measurement import LinearMeasurement, Measurement
from backdrift.likelihood.ladder import Continuous
from backdrift.noise import Noise
from backdrift.posterior import expand, flat
from backdrift.sample.default import data_scale
from backdrift.trust.klip import Klip


class Found(NamedTuple):
    """scores: (N,), larger is less usual. map: (N, *event), or None where the score has none."""

    scores: Tensor
    map: Tensor | None


@dataclass(frozen=True, eq=False)
class Reference:
    """What is usual, from training pictures (N, *event)."""

    pictures: Tensor

    @cached_property
    def mean(self) -> Tensor:
        """(*event) float64."""
        return self.pictures.double().mean(0)

    @cached_property
    def precision(self) -> Tensor:
        """The inverse covariance (D, D), shrunk by Ledoit and Wolf's rule, so that it exists for few pictures."""
        from sklearn.covariance import LedoitWolf

        return torch.from_numpy(LedoitWolf().fit(flat(self.pictures).double().numpy()).precision_)


def baselines(
    found: Klip,
    denoiser: Denoiser,
    measurement: Measurement,
    y: Tensor,
    reference: Reference,
    levels: int = 16,
    seed: int = 0,
) -> dict[str, Found]:
    """The scores above, by name, for measurements y (N, *shape) whose posterior draws KLIP has made."""
    mean, y = found.mean, measurement.batched(y)
    clean = measurement.forward(mean)
    back = measurement.pinv(y - clean).square() if isinstance(measurement, LinearMeasurement) else None
    error, surprise = _errors(denoiser, mean, levels, seed)
    off = mean.double() - reference.mean
    share = (flat(off) @ reference.precision).view_as(off) * off
    return {
        "residual": Found(-measurement.noise.log_prob(clean, y), back),
        "reconstruction": Found(flat(error).sum(1), error),
        "likelihood": Found(flat(surprise).sum(1), surprise),
        "spread": Found(flat(found.std.square()).sum(1), found.std.square()),
        "mahalanobis": Found(flat(share).sum(1), share),
        "mean picture": Found(flat(off).square().sum(1), off.square()),
    }


def _errors(denoiser: Denoiser, x: Tensor, levels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Per pixel of x (N, *event): the mean of |x - D(x_t)|^2 over the levels, and -log p by their integral."""
    schedule, noise = denoiser.process.schedule, Noise(seed, torch.zeros(len(x), dtype=torch.long)).at("baselines")
    ladder = Continuous(levels)
    alpha, sigma = schedule.alpha_sigma(ladder.end(schedule))
    error = torch.zeros_like(x, dtype=torch.float64)
    surprise = torch.full_like(error, (math.log(2 * math.pi * math.e) + 2 * math.log(sigma / alpha)) / 2)
    with torch.no_grad():
        for k, node in enumerate(ladder.nodes(schedule, data_scale(denoiser), noise)):
            alpha, sigma = schedule.alpha_sigma(node.t)
            xt = expand(alpha, x) * x + expand(sigma, x) * noise.at("level", k).normal(x)
            square = (x - denoiser(xt, node.t).mean).double().square()
            error += square / levels
            surprise += expand(node.width, square) / 2 * square
    return error, surprise
