"""The verbs that every process offers, for tensors, tokens and dicts of them alike.

With them the ancestral sampler "predict x_0, sample the bridge" is one loop for pictures, tokens and molecules, and a
few-step sampler is "predict x_0, corrupt again".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from backdrift.noise import Noise
from backdrift.posterior import Posterior

State = Tensor | Mapping[str, Tensor]


class Process(ABC):
    """A Markov corruption q(x_t | x_0) for t in [0, 1]. Times are floats or tensors (B,)."""

    @abstractmethod
    def prior(self, like: State, noise: Noise, cond: Mapping | None = None) -> State:
        """x_1, the state at t = 1, of like's shapes (B, *event); `cond` may carry masks or sizes."""

    @abstractmethod
    def corrupt(self, x: State, t: float | Tensor, noise: Noise, start: float | Tensor | None = None) -> State:
        """x_t ~ q(x_t | x_start); start = None means that x is clean data, x_0 itself."""

    @abstractmethod
    def bridge(self, xt: State, posterior: Posterior, t: float | Tensor, s: float | Tensor, noise: Noise) -> State:
        """x_s for s < t, drawn from the posterior's x_0 and q(x_s | x_t, x_0): the universal reverse step."""

    @abstractmethod
    def loss(self, posterior: Posterior, x0: State, xt: State, t: float | Tensor) -> Tensor:
        """The bare distance of a belief from the truth, (B,), unweighted, summed over the event."""

    @abstractmethod
    def log_likelihood(self, xt: State, points: State, t: float | Tensor) -> Tensor:
        """log q(x_t | x_0 = point) for every point (N, *event): (B, N), up to a constant of the row."""

    @abstractmethod
    def belief(self, weights: Tensor, points: State) -> Posterior:
        """The posterior of x_0 when it is points[n] with probability weights[b, n]."""
