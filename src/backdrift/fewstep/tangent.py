"""Derivatives along a path: d/dh net(u + h v, w + h r) at h = 0, without a gradient.

`Exact` is forward-mode differentiation, one pass of about the cost of a backward one. `Differences` needs two passes of
the network and nothing else of it, so it serves networks whose layers have no forward-mode rule; its error is of order
h^2 plus rounding over h, so it wants float32 or better.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.posterior import expand

Net = Callable[[Tensor, Tensor], Tensor]


class Tangent(ABC):
    """How a derivative along a path is taken; subclasses are frozen dataclasses."""

    @abstractmethod
    def along(self, net: Net, u: Tensor, w: Tensor, v: Tensor, rate: Tensor) -> Tensor:
        """d net(u + h v, w + h rate) / dh at h = 0, detached. u, v: (B, *event); w, rate: (B,)."""


@kind("tangent.Exact")
@dataclass(frozen=True)
class Exact(Tangent):
    """Forward-mode differentiation. Raises `UserError` where a layer of the network has no rule for it."""

    def along(self, net, u, w, v, rate):
        try:
            with torch.no_grad():
                return torch.func.jvp(net, (u, w), (v, rate.to(w)))[1].detach()
        except (NotImplementedError, RuntimeError) as error:
            if "forward" not in str(error) and "jvp" not in str(error):
                raise
            raise UserError(
                f"A layer of this network has no forward-mode derivative ({error}); take finite differences instead."
            ) from error


@kind("tangent.SemiDiscrete")
@dataclass(frozen=True)
class SemiDiscrete(Tangent):
    """Forward mode in the state, central differences of half-width h in the time, whose embedding may be rough.

    Zheng et al. 2025, arXiv:2510.08431 (rCM). Raises `UserError` as `Exact` does.
    """

    h: float = 1e-3

    def __post_init__(self):
        _check_width(self.h)

    def along(self, net, u, w, v, rate):
        state = random_state()
        in_state = Exact().along(lambda x, _: net(x, w), u, w, v, torch.zeros_like(w))
        with replayed(state):
            return in_state + Differences(self.h).along(net, u, w, torch.zeros_like(v), rate)


@kind("tangent.Differences")
@dataclass(frozen=True)
class Differences(Tangent):
    """Central differences of half-width h in the direction scaled to a unit step of w."""

    h: float = 1e-3

    def __post_init__(self):
        _check_width(self.h)

    def along(self, net, u, w, v, rate):
        with torch.no_grad():
            state = random_state()
            ahead = net(u + self.h * v, w + self.h * rate)
            with replayed(state):
                behind = net(u - self.h * v, w - self.h * rate)
        return (ahead - behind) / (2 * self.h)


def _check_width(h: float) -> None:
    if not h > 0:
        raise UserError(f"Finite differences need a positive step, not {h}.")


def random_state() -> Tensor:
    """torch's random state on the CPU, and with it the dropout that the next pass will draw."""
    return torch.get_rng_state()


@contextmanager
def replayed(state: Tensor):
    """Within the block torch draws again what it drew after `state`; afterwards it goes on as before the block.

    Two branches of a loss are compared under the same dropout, or their difference is mostly dropout's.
    """
    now = torch.get_rng_state()
    torch.set_rng_state(state)
    try:
        yield
    finally:
        torch.set_rng_state(now)


def norm(x: Tensor) -> Tensor:
    """Of each sample, (B,)."""
    return x.flatten(1).norm(dim=1)


def normalised(g: Tensor, constant: float) -> Tensor:
    """g / (|g| + constant), sample by sample."""
    return g / expand(norm(g) + constant, g)
