"""What a detector adds to A(x): noise models, each a law of y given the clean measurement.

A posterior needs only their log-density as a function of x, so that Gaussian, counting and rounding detectors are
served alike. Gradients exist where the density is smooth in the clean measurement.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.posterior import flat


class NoiseModel(ABC):
    """p(y | clean), independent over the numbers of y; subclasses are frozen dataclasses.

    smooth: whether log_prob has a useful gradient in `clean`.
    """

    smooth: bool = True

    @abstractmethod
    def draw(self, clean: Tensor, noise: Noise) -> Tensor:
        """One measurement for each clean one, (B, *shape)."""

    @abstractmethod
    def log_prob(self, clean: Tensor, y: Tensor) -> Tensor:
        """log p(y | clean), (B,), in nats; clean: (B, *shape), y: (B or 1, *shape)."""


@dataclass(frozen=True, eq=False)
class GaussianNoise(NoiseModel):
    """y = clean + N(0, std^2). std: a number, or a tensor that broadcasts to y, positive."""

    std: float | Tensor

    def __post_init__(self):
        std = torch.as_tensor(self.std, dtype=torch.float64)
        object.__setattr__(self, "std", std)
        if not bool((std > 0).all() and torch.isfinite(std).all()):
            raise UserError("The measurement's noise must be positive; a nearly exact one may be as small as 1e-6.")

    def variance(self, like: Tensor) -> Tensor:
        """std^2, broadcast to like's shape, in its dtype."""
        return (self.std**2).to(like).expand(like.shape)

    def draw(self, clean, noise):
        return clean + self.variance(clean).sqrt() * noise.normal(clean)

    def log_prob(self, clean, y):
        variance = self.variance(clean)
        return -flat((y - clean).square() / variance + (2 * math.pi * variance).log()).sum(1) / 2


@dataclass(frozen=True)
class PoissonNoise(NoiseModel):
    """Counting: y = N / peak with N ~ Poisson(peak clean). peak: the expected count at clean = 1; negative is 0."""

    peak: float

    def __post_init__(self):
        if not 0 < self.peak < math.inf:
            raise UserError(f"The peak of a counting detector is a positive number of counts, not {self.peak}.")

    def draw(self, clean, noise):
        rate = (self.peak * clean).clamp_min(0).double()
        u = noise.uniform(rate)
        # the smallest count whose cumulative probability Q(count + 1, rate) reaches u, by bisection
        low = torch.full_like(rate, -1)
        high = (rate + 12 * rate.sqrt() + 40).ceil()
        while bool((high - low > 1).any()):
            middle = ((low + high) / 2).floor()
            reached = torch.special.gammaincc(middle + 1, rate.clamp_min(1e-30)) >= u
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        return (high / self.peak).to(clean)

    def log_prob(self, clean, y):
        counts, rate = self.peak * y, (self.peak * clean).clamp_min(0)
        return flat(torch.special.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)).sum(1)


@dataclass(frozen=True, eq=False)
class RoundedNoise(NoiseModel):
    """y = clean + N(0, std^2), rounded to the nearest multiple of `step`: p(y | clean) is the mass of its cell.

    step: a number, or a tensor that broadcasts to y. std = 0 is pure rounding: the likelihood is 1 in the cell and 0
    outside, and has no gradient.
    """

    step: float | Tensor
    std: float = 0.0

    def __post_init__(self):
        step = torch.as_tensor(self.step, dtype=torch.float64)
        object.__setattr__(self, "step", step)
        if not (bool(((step > 0) & torch.isfinite(step)).all()) and 0 <= self.std < math.inf):
            raise UserError(f"Rounding needs a positive step and a std of at least 0, not {self.step} and {self.std}.")

    @property
    def smooth(self) -> bool:
        return self.std > 0

    def draw(self, clean, noise):
        step = self.step.to(clean)
        return torch.round((clean + self.std * noise.normal(clean)) / step) * step

    def log_prob(self, clean, y):
        gap, step = y - clean, self.step.to(clean)
        if self.std == 0:
            inside = flat(gap.abs() <= step / 2 * (1 + 1e-6)).all(1)
            return torch.where(inside, 0.0, -torch.inf).to(gap.dtype)
        # the cell is mirrored to the negative side, where both logs keep their digits
        a, b = (-gap.abs() - step / 2) / self.std, (-gap.abs() + step / 2) / self.std
        upper, lower = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
        return flat(upper + torch.log1p(-(lower - upper).exp())).sum(1)
