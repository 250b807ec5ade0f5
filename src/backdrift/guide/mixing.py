"""How the belief with the condition and the one without are mixed: plainly, or so that large weights do less harm.

Plain guidance moves the mean by w (D_1 - D_0), which for large w leaves the range of the data: pictures grow
contrasts and colours that no datum has. The other ways keep the size of the conditional mean, or follow only the part
of the difference that does not simply scale it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.posterior import Posterior, TensorPosterior, expand, flat


class Mixing(ABC):
    """A rule for the guided belief; subclasses are frozen dataclasses."""

    @abstractmethod
    def mix(self, without: Posterior, belief: Posterior, w: float | Tensor) -> Posterior:
        """The belief guided with weight w from `without` the condition towards the one with it."""


@kind("mixing.Plain")
@dataclass(frozen=True)
class Plain(Mixing):
    """without.lerp(belief, w)."""

    def mix(self, without, belief, w):
        return without.lerp(belief, w)


@kind("mixing.Rescaled")
@dataclass(frozen=True)
class Rescaled(Mixing):
    """The guided mean with its standard deviation over a sample drawn back towards the conditional mean's.

    share: how much of the way, in [0, 1]. Lin et al. 2023, arXiv:2305.08891, Eq. 15 and 16, on means.
    """

    share: float = 0.7

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise UserError(f"Rescaled guidance takes a share from 0 to 1, not {self.share}.")

    def mix(self, without, belief, w):
        mixed = _tensors(without, belief).lerp(belief, w)
        ratio = flat(belief.mean).std(1) / flat(mixed.mean).std(1).clamp_min(1e-12)
        return TensorPosterior(expand(1 + self.share * (ratio - 1), mixed.mean) * mixed.mean, mixed.fraction)


@kind("mixing.Projected")
@dataclass(frozen=True)
class Projected(Mixing):
    """Only the part of D_1 - D_0 across D_1 counts in full; the part along it, which saturates, by `along`.

    limit: the difference is shortened to this norm per sqrt(dimension), where it is longer; None for no limit.
    Sadat et al. 2024, arXiv:2410.02416, Algorithm 1, without its momentum: a denoiser has no memory.
    """

    along: float = 0.0
    limit: float | None = None

    def __post_init__(self):
        if self.limit is not None and not self.limit > 0:
            raise UserError(f"The limit of projected guidance must be positive, not {self.limit}.")

    def mix(self, without, belief, w):
        given = flat(belief.mean)
        step = given - flat(_tensors(without, belief).mean)
        if self.limit is not None:
            norm = step.norm(dim=1, keepdim=True) / step.shape[1] ** 0.5
            step = step * (self.limit / norm.clamp_min(1e-12)).clamp_max(1)
        unit = given / given.norm(dim=1, keepdim=True).clamp_min(1e-12)
        parallel = (step * unit).sum(1, keepdim=True) * unit
        moved = given + (expand(w, given) - 1) * (step - parallel + self.along * parallel)
        return TensorPosterior(moved.view(belief.mean.shape), belief.fraction)


def _tensors(without: Posterior, belief: Posterior) -> TensorPosterior:
    if not (isinstance(without, TensorPosterior) and isinstance(belief, TensorPosterior)):
        raise UserError("Rescaled and projected guidance are for tensors; tokens and fields take plain guidance.")
    return without


def combine(base: Posterior, beliefs: list[Posterior], weights: list[float]) -> Posterior:
    """base + sum_i w_i (belief_i - base): on means for tensors, on log-probabilities for categories.

    Raises `UserError` for products of fields.
    """
    if isinstance(base, TensorPosterior):
        moved = sum(w * (belief.mean - base.mean) for belief, w in zip(beliefs, weights, strict=True))
        return TensorPosterior(base.mean + moved, base.fraction)
    if not hasattr(base, "log_probs"):
        raise UserError("Conditions can be composed for tensors and tokens, not for products of fields.")
    logs = [belief.log_probs for belief in beliefs]
    impossible = torch.stack([torch.isneginf(value) for value in (base.log_probs, *logs)]).any(0)
    start = base.log_probs.masked_fill(impossible, 0.0)
    moved = start + sum(w * (v.masked_fill(impossible, 0.0) - start) for v, w in zip(logs, weights, strict=True))
    mixed = moved.masked_fill(impossible, -torch.inf).log_softmax(-1)
    # where the conditions leave nothing in common, the unconditional belief stands
    return type(base)(torch.where(impossible.all(-1, keepdim=True), base.log_probs, mixed))
