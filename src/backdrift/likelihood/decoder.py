"""The last step of the bound: the law of the data given the finest noisy state, N(D, std^2) element by element.

For continuous data it is that density. For pixels, which are 256 levels in [-1, 1], it is the mass of the level's bin,
with the outermost bins reaching to infinity, so that the levels' probabilities add up to 1.
Ho et al. 2020, arXiv:2006.11239, Eq. 13.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.likelihood.estimate import Pair


class Decoder(ABC):
    """E log p(x_0 | x_first); subclasses are frozen dataclasses."""

    @abstractmethod
    def expected(self, x0: Tensor, pair: Pair, std: float) -> Tensor:
        """In nats for each element, of x0's shape, float64, averaged over the pair's two noises."""

    def check(self, x0: Tensor) -> None:  # noqa: B027
        """Raises `UserError` for data that this decoder cannot produce."""


@dataclass(frozen=True)
class GaussianDecoder(Decoder):
    """A density, for continuous data."""

    def expected(self, x0, pair, std):
        return -pair.square / (2 * std**2) - math.log(2 * math.pi * std**2) / 2


@dataclass(frozen=True)
class DiscretisedGaussian(Decoder):
    """A probability, for data on `levels` equally spaced values from -1 to 1."""

    levels: int = 256

    def __post_init__(self):
        if self.levels < 2:
            raise UserError(f"A discretised Gaussian needs at least 2 levels, not {self.levels}.")

    def check(self, x0):
        steps = (x0.double() + 1) * (self.levels - 1) / 2
        if bool((x0.abs() > 1 + 1e-5).any()) or bool(((steps - steps.round()).abs() > 1e-2).any()):
            raise UserError(
                f"The discretised decoder needs pixels on {self.levels} levels in [-1, 1]; "
                "for other data take the GaussianDecoder."
            )

    def expected(self, x0, pair, std):
        return sum(self.log_prob(x0, belief.mean, std) for belief in pair.beliefs) / 2

    def log_prob(self, x0: Tensor, mean: Tensor, std: float) -> Tensor:
        """log of the mass of x0's bin under N(mean, std^2), element by element, float64."""
        half = 1 / (self.levels - 1)
        gap = x0.double() - mean.double()
        low = torch.where(x0 < -1 + half, -torch.inf, (gap - half) / std)
        high = torch.where(x0 > 1 - half, torch.inf, (gap + half) / std)
        # Phi(high) - Phi(low) = Phi(-low) - Phi(-high): the side where both are small keeps its digits
        flip = low + high > 0
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        upper = torch.special.log_ndtr(high)
        return upper + torch.log1p(-(torch.special.log_ndtr(low) - upper).exp())
