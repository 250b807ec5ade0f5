"""The trace of a Jacobian from products with it.

The divergence of the probability flow is the trace of J = d D / d x, known only through products J^T v, one backward
pass each. A trace is estimated from random probes that are drawn once and then kept for a whole solve, so that what is
integrated is a smooth function of time, and each probe gives an estimate of its own.

    ExactTrace    the D unit vectors
    Hutchinson    v^T J v for v of independent signs; mean tr J, variance 2 sum_{i != j} of the symmetric part squared
    HutchPP       exactly on the range of J^T S for a few random columns S, Hutchinson on what is left
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.noise import Noise

Product = Callable[[Tensor], Tensor]
"""v (B, D) -> J^T v (B, D), for each sample's own J."""


class Trace(ABC):
    """How to estimate the trace; subclasses are frozen dataclasses."""

    @abstractmethod
    def draw(self, noise: Noise, like: Tensor) -> Tensor:
        """The probes (K, B, D) for states like (B, D)."""

    @abstractmethod
    def diagonal(self, product: Product, probes: Tensor) -> Tensor:
        """(P, B, D): P estimates of the diagonal, whose sums over D are estimates of the trace."""


@dataclass(frozen=True)
class ExactTrace(Trace):
    """The diagonal itself, in D products."""

    def draw(self, noise, like):
        return torch.eye(like.shape[1], dtype=like.dtype, device=like.device)[:, None].expand(-1, *like.shape)

    def diagonal(self, product, probes):
        return sum(e * product(e) for e in probes)[None]


@dataclass(frozen=True)
class Hutchinson(Trace):
    """The mean over `probes` vectors of random signs, in as many products.

    Hutchinson 1989, doi:10.1080/03610918908812806.  Raises `UserError` for less than two
    probes, which leave no standard error.
    """

    probes: int = 8

    def __post_init__(self):
        if self.probes < 2:
            raise UserError(f"Hutchinson's trace needs at least 2 probes for its standard error, not {self.probes}.")

    def draw(self, noise, like):
        return _signs(noise, like, self.probes)

    def diagonal(self, product, probes):
        return torch.stack([v * product(v) for v in probes])


@dataclass(frozen=True)
class HutchPP(Trace):
    """Hutch++: exact on a random range of `sketch` directions, `probes` random signs on the rest.

    In 2 sketch + probes products; exact where the rank of J is at most `sketch`. The standard error over probes holds
    the range fixed, given which the estimate is unbiased.

    Meyer et al. 2021, arXiv:2010.09649, Algorithm 1.  Raises `UserError` for no sketch, or less than two probes.
    """

    sketch: int = 4
    probes: int = 4

    def __post_init__(self):
        if self.sketch < 1 or self.probes < 2:
            raise UserError(f"Hutch++ needs a sketch of at least 1 and 2 probes, not {self.sketch} and {self.probes}.")

    def draw(self, noise, like):
        return _signs(noise, like, self.sketch + self.probes)

    def diagonal(self, product, probes):
        columns = torch.stack([product(v) for v in probes[: self.sketch]], -1)
        basis, _ = torch.linalg.qr(columns)
        known = sum(q * product(q) for q in basis.unbind(-1))
        rest = [v - (basis @ (basis.mT @ v.unsqueeze(-1))).squeeze(-1) for v in probes[self.sketch :]]
        return torch.stack([known + v * product(v) for v in rest])


def _signs(noise: Noise, like: Tensor, count: int) -> Tensor:
    return torch.stack([(noise.at("probe", i).uniform(like) < 0.5).to(like) * 2 - 1 for i in range(count)])
