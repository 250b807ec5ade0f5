"""Averages of the weights over training, which sample better than the last weights do.

An average is a law of how much of it survives a step: average <- keep average + (1 - keep) weights. Lengths are counted
in pictures, so that they mean the same at every batch size.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.errors import UserError


class Average(ABC):
    """A law of averaging; subclasses are frozen dataclasses."""

    @abstractmethod
    def keep(self, seen: int, batch: int) -> float:
        """The share of the old average that stays, after `seen` pictures of which `batch` in the last step."""


@kind("average.Exponential")
@dataclass(frozen=True)
class Exponential(Average):
    """Halved every `halflife` pictures, or every `warmup` of those seen so far where that is less (Karras et al. 2022).

    The warm-up lets the average forget the untrained start.
    """

    halflife: int = 100_000
    warmup: float = 0.05

    def __post_init__(self):
        if not (self.halflife > 0 and self.warmup > 0):
            raise UserError("Exponential averaging needs a positive halflife and warmup.")

    def keep(self, seen, batch):
        return 0.5 ** (batch / min(self.halflife, seen * self.warmup))


@kind("average.Power")
@dataclass(frozen=True)
class Power(Average):
    """Weights at time u of a training of length T count as u^g: the average stretches with the training.

    width: the standard deviation of that profile relative to T; it fixes g.
    Karras et al. 2024, arXiv:2312.02696, section 3.1.
    """

    width: float = 0.05

    def __post_init__(self):
        if not 0 < self.width < 0.288:
            raise UserError(f"The width of a power average lies between 0 and 0.288, not {self.width}.")

    @property
    def exponent(self) -> float:
        """g, from width^2 = (g + 1) / ((g + 2)^2 (g + 3)); the right side falls in g, so bisection finds it."""
        low, high = 0.0, 1e9
        for _ in range(200):
            g = (low + high) / 2
            if (g + 1) / ((g + 2) ** 2 * (g + 3)) > self.width**2:
                low = g
            else:
                high = g
        return (low + high) / 2

    def keep(self, seen, batch):
        return (1 - batch / seen) ** (self.exponent + 1)


def averaged_copy(net: nn.Module) -> nn.Module:
    """A copy to hold the average: no gradients, evaluation mode."""
    return copy.deepcopy(net).eval().requires_grad_(False)


def averageable(net: nn.Module) -> list[Tensor]:
    """What is averaged of a network: its parameters and its buffers of real numbers, always in the same order."""
    return [*net.parameters(), *(buffer for buffer in net.buffers() if buffer.is_floating_point())]


@torch.no_grad()
def update(averages: list[Tensor], current: list[Tensor], keep: float) -> None:
    """One step of averaging, in place, on two lists made by `averageable`."""
    torch._foreach_lerp_(averages, current, 1 - keep)
