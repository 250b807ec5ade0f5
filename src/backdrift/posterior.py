"""What a denoiser returns: its belief about x_0 given x_t.

Guidance is one operation on beliefs, `uncond.lerp(cond, w)`: w = 0 and w = 1 return the two unchanged, w > 1
extrapolates. Tensors interpolate their means, categories their log-probabilities (renormalised), products do it field
by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorPosterior:
    """E[x_0 | x_t] of a continuous state.

    mean: (B, *event). fraction: None, or a learned variance as a number per element that interpolates, in log, between
    the two DDPM variances, 0 the smaller and 1 the larger (used by `process.Gaussian.bridge`). It may leave [0, 1].
    """

    mean: Tensor
    fraction: Tensor | None = None

    def lerp(self, other: TensorPosterior, w: float | Tensor) -> TensorPosterior:
        """(1 - w) self + w other on the means; the learned variance is `other`'s (the conditional one)."""
        if _is(w, 0):
            return self
        if _is(w, 1):
            return other
        return TensorPosterior(torch.lerp(self.mean, other.mean, expand(w, self.mean)), other.fraction)


@dataclass(frozen=True)
class CategoricalPosterior:
    """p(x_0 | x_t) of a discrete state, independent over positions. log_probs: (B, *event, K), normalised."""

    log_probs: Tensor

    @property
    def mean(self) -> Tensor:
        """E[one-hot(x_0) | x_t], the probabilities, (B, *event, K)."""
        return self.log_probs.exp()

    def lerp(self, other: CategoricalPosterior, w: float | Tensor) -> CategoricalPosterior:
        """(1 - w) self + w other on log-probabilities, renormalised; where either is -inf the result is -inf.

        Where that leaves no category at all, the result is `other`.
        """
        if _is(w, 0):
            return self
        if _is(w, 1):
            return other
        a, b = self.log_probs, other.log_probs
        w, impossible = expand(w, a), torch.isneginf(a) | torch.isneginf(b)
        # the two -inf are taken out first: 0 * inf and inf - inf would be NaN
        mixed = torch.lerp(a.masked_fill(impossible, 0.0), b.masked_fill(impossible, 0.0), w)
        mixed = mixed.masked_fill(impossible, -torch.inf).log_softmax(-1)
        # w = 0 and w = 1 return the two unchanged sample by sample as well; `other` stands where nothing is left
        mixed = torch.where((w == 1) | impossible.all(-1, keepdim=True), b, mixed)
        return CategoricalPosterior(torch.where(w == 0, a, mixed))


@dataclass(frozen=True)
class FieldsPosterior:
    """Beliefs about the named fields of a product state, each independent of the others given x_t."""

    fields: Mapping[str, Posterior]

    @property
    def mean(self) -> dict[str, Tensor]:
        return {name: q.mean for name, q in self.fields.items()}

    def lerp(self, other: FieldsPosterior, w: float | Tensor) -> FieldsPosterior:
        """Field by field."""
        return FieldsPosterior({name: q.lerp(other.fields[name], w) for name, q in self.fields.items()})


Posterior = TensorPosterior | CategoricalPosterior | FieldsPosterior


def _is(w: float | Tensor, value: float) -> bool:
    return not isinstance(w, Tensor) and w == value


def expand(values: float | Tensor, like: Tensor) -> Tensor:
    """A number, or one number per sample (B,), as a tensor that broadcasts against `like` (B, *event), in its dtype."""
    values = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if values.ndim:
        values = values.reshape(values.shape[0], *[1] * (like.ndim - 1))
    return values


def flat(x: Tensor) -> Tensor:
    """(B, *event) as (B, D); an event of shape () has D = 1."""
    return x.unsqueeze(-1).flatten(1)
