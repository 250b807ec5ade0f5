"""Averages of the weights over training, which sample better than the last weights do.

An average is a law of how much of it survives a step: average <- keep average + (1 - keep) weights. Lengths are counted
in pictures, so that they mean the same at every batch size.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.errors import UserError

WIDEST = 0.288  # the standard deviation of the even average, 1 / sqrt(12), rounded down


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
        if not 0 < self.width < WIDEST:
            raise UserError(f"The width of a power average lies between 0 and {WIDEST}, not {self.width}.")

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


@kind("average.Snapshots")
@dataclass(frozen=True)
class Snapshots:
    """What a training keeps so that an average can be chosen after it (`train.posthoc`).

    count: how often, 0 for never. widths: of the power averages that are kept. Snapshots lie at sqrt(k / count) of
    the training, denser towards its end, where the profiles of averages have their mass.
    """

    count: int = 8
    widths: tuple[float, ...] = (0.05, 0.10)

    def __post_init__(self):
        if self.count < 0:
            raise UserError(f"The number of snapshots must not be negative, not {self.count}; 0 keeps none.")
        if not self.widths or len({Power(width) for width in self.widths}) < len(self.widths):
            raise UserError(f"Snapshots need at least one width, and each only once, not {self.widths}.")

    @property
    def laws(self) -> tuple[Power, ...]:
        """The averages to keep, in the order of `widths`."""
        return tuple(Power(width) for width in self.widths) if self.count else ()

    def steps(self, last: int) -> frozenset[int]:
        """After which of `last` steps they are kept."""
        return frozenset(math.ceil(last * math.sqrt(k / self.count)) for k in range(1, self.count + 1))


def averaged_copy(net: nn.Module) -> nn.Module:
    """A copy to hold the average: no gradients, evaluation mode."""
    return copy.deepcopy(net).eval().requires_grad_(False)


def averageable(net: nn.Module) -> dict[str, Tensor]:
    """What is averaged of a network, itself, by name: its parameters and its buffers of real numbers."""
    buffers = {name: buffer for name, buffer in net.named_buffers() if buffer.is_floating_point()}
    return {**dict(net.named_parameters()), **buffers}


@torch.no_grad()
def update(average: Mapping[str, Tensor], current: Mapping[str, Tensor], keep: float) -> None:
    """One step of averaging, in place, on what `averageable` says of two networks of one kind."""
    torch._foreach_lerp_(list(average.values()), list(current.values()), 1 - keep)
