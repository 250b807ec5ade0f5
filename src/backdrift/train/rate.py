"""The learning rate over a training: up along a line, then down along a curve.

Everything is a share of the whole training, so a schedule means the same in steps and in pictures.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from backdrift.config import kind
from backdrift.errors import UserError


@dataclass(frozen=True)
class Rate(ABC):
    """warmup: the share of the training over which the rate rises from 0 to its full value."""

    warmup: float = 0.02

    def __post_init__(self):
        if not 0 <= self.warmup < 1:
            raise UserError(f"The warm-up is a share of the training, at least 0 and below 1, not {self.warmup}.")

    def factor(self, done: float) -> float:
        """The rate as a share of its full value, where a share `done` in (0, 1) of the training is behind."""
        if done < self.warmup:
            return done / self.warmup
        return self.fall((done - self.warmup) / (1 - self.warmup))

    @abstractmethod
    def fall(self, done: float) -> float:
        """From 1 at done = 0."""


@kind("rate.Cosine")
@dataclass(frozen=True)
class Cosine(Rate):
    """Falls to 0 along half a cosine."""

    def fall(self, done):
        return (1 + math.cos(math.pi * done)) / 2


@kind("rate.Linear")
@dataclass(frozen=True)
class Linear(Rate):
    """Falls to 0 along a line."""

    def fall(self, done):
        return 1 - done


@kind("rate.Constant")
@dataclass(frozen=True)
class Constant(Rate):
    """Stays."""

    def fall(self, done):
        return 1.0
