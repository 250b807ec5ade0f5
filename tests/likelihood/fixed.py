"""A noise whose draws are given, so that averages over a batch of copies are quadratures and not Monte Carlo."""

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class Fixed:
    """eps: (B, *event), every normal draw; uniform: (B,), every uniform one. `at` changes nothing."""

    eps: torch.Tensor
    level: torch.Tensor
    index: torch.Tensor = field(init=False)

    def __post_init__(self):
        self.index = torch.arange(len(self.eps))

    def at(self, *names):
        return self

    def normal(self, like):
        return self.eps.to(like)

    def uniform(self, like):
        return self.level.to(like).view(-1, *[1] * (like.ndim - 1)).expand(like.shape)


def hermite(n):
    """(nodes, weights) of a standard normal, n points."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(x), torch.from_numpy(w / w.sum())


def legendre(n):
    """(nodes, weights) of a uniform number in [0, 1], n points."""
    x, w = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def cubature(x):
    """(copies of x (B, D), their noise): averages over the D copies of each are exact for quadratics in eps."""
    count, size = x.shape
    eps = size**0.5 * torch.eye(size, dtype=x.dtype)
    return x.repeat_interleave(size, 0), Fixed(eps.repeat(count, 1), torch.full((count * size,), 0.5))


def mean_over_copies(values, copies):
    """(B * copies, ...) -> (B, ...)."""
    return values.view(-1, copies, *values.shape[1:]).mean(1)
