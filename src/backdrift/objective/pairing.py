"""Which noise goes with which picture.

Noise drawn for a picture need not stay with it: any exchange among the pictures of a batch leaves the noise normal and
the pictures as they are, so the path still leads from all of the noise to all of the data. Exchanged so that the sum of
square distances is least, paths of flow matching cross less, are straighter, and take fewer steps to follow.
Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2023, arXiv:2302.00482.

What changes is the law of (x_0, noise), so the network learns E[x_0 | x_t] of another coupling: the flow it defines
still ends in the data, but alpha E[x_0 | x_t] - x_t over sigma^2 is no longer a score. Sample such a network with
deterministic solvers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.posterior import flat

Look = Callable[[Tensor], tuple[Tensor, Tensor, Mapping[str, Tensor]]]
"""places (N,) of the stream -> pictures (N, *event), their own noise (N, *event), their conditions."""


class Pairing(ABC):
    """Subclasses are frozen dataclasses."""

    @abstractmethod
    def partners(self, places: Tensor, look: Look) -> Tensor:
        """The places whose noise the samples at `places` (B,) take, (B,)."""


@kind("pairing.Independent")
@dataclass(frozen=True)
class Independent(Pairing):
    """Every picture keeps its own noise."""

    def partners(self, places, look):
        return places


@kind("pairing.OptimalTransport")
@dataclass(frozen=True)
class OptimalTransport(Pairing):
    """The exchange of least square distance within each run of `group` consecutive places of the stream.

    A place has the same noise however the stream is cut into batches and parts. Choose a divisor of the batch: the cost
    grows as the cube of the group (milliseconds up to 256), and a group that straddles batches is solved in each.
    Pictures exchange noise with those of the same label only, so that the noise stays normal for every label.
    """

    group: int = 128

    def __post_init__(self):
        if self.group < 2:
            raise UserError(f"Noise is paired in groups of at least 2 pictures, not {self.group}.")

    def partners(self, places, look):
        groups, found = places // self.group, torch.empty_like(places)
        for number in groups.unique().tolist():
            members = torch.arange(number * self.group, (number + 1) * self.group)
            x0, eps, cond = look(members)
            chosen = members[nearest(x0, eps, cond.get("label"))]
            here = groups == number
            found[here] = chosen[places[here] % self.group]
        return found


def nearest(x0: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
    """The permutation p (N,) that minimises sum_i |x0_i - eps_p(i)|^2 within each label; x0, eps: (N, *event)."""
    from scipy.optimize import linear_sum_assignment

    gain = flat(x0).double() @ flat(eps).double().T  # the squares are the same in every order
    label = torch.zeros(len(x0)) if label is None else label
    permutation = torch.empty(len(x0), dtype=torch.int64)
    for value in label.unique():
        members = (label == value).nonzero().flatten()
        _, column = linear_sum_assignment(gain[members][:, members].numpy(), maximize=True)
        permutation[members] = members[torch.from_numpy(column)]
    return permutation
