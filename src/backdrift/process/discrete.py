"""Discrete processes: tokens 0..K-1 that are kept with probability alpha(t) and otherwise lost.

A lost token becomes the mask K (`Masking`) or a uniform draw from 0..K-1 (`UniformTokens`). The keep probability is a
schedule's alpha: `Flow` keeps 1 - t. Both are Austin et al. 2021, arXiv:2107.03006; from s to t a token is kept with
probability alpha_t / alpha_s.

Beliefs are independent over positions given x_t, so a step that changes several tokens at once makes an error of
second order in the step: the law of the samples converges at first order in the number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.posterior import CategoricalPosterior, expand, flat
from backdrift.process.base import Process
from backdrift.schedule import Flow, Schedule


def draw_categorical(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (...) from log_probs (..., K) by inverting the cumulative sum at `uniform` (...) in (0, 1)."""
    cumulative = log_probs.double().exp().cumsum(-1)
    # scaled by the total, so that rounding can never select beyond the last possible token
    place = uniform.double().unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, place, right=True).squeeze(-1).clamp_max(log_probs.shape[-1] - 1)


def _keep(schedule: Schedule, s: float | Tensor | None, t: float | Tensor, like: Tensor) -> Tensor:
    """alpha_t / alpha_s, shaped for broadcasting over `like` (B, *event), in float64."""
    alpha_t, _ = schedule.alpha_sigma(t)
    if s is None:
        return expand(alpha_t, like.double())
    alpha_s, _ = schedule.alpha_sigma(s)
    if bool((alpha_t > alpha_s).any()):
        raise UserError("Corruption goes from a smaller time to a larger one; here the start lies after the end.")
    return expand(torch.where(alpha_s == 0, 1.0, alpha_t / alpha_s), like.double())


def _one_hot_belief(weights: Tensor, points: Tensor, classes: int) -> CategoricalPosterior:
    onehot = torch.nn.functional.one_hot(flat(points), classes).to(weights.dtype)
    probs = torch.einsum("bn,ndk->bdk", weights, onehot)
    return CategoricalPosterior(probs.log().view(len(weights), *points.shape[1:], classes))


@dataclass(frozen=True)
class _Tokens(Process):
    """What masking and uniform corruption share. States: LongTensor (B, *event)."""

    classes: int
    schedule: Schedule = field(default_factory=Flow)

    def __post_init__(self):
        if self.classes < 2:
            raise UserError(f"A discrete process needs at least 2 classes, not {self.classes}.")
        start, end = (float(self.schedule.alpha_sigma(t)[0]) for t in (0.0, 1.0))
        if abs(start - 1) > 1e-12 or end > 1e-2:
            raise UserError("A discrete process needs a schedule whose alpha falls from 1 to 0, such as Flow or Trig.")

    def belief(self, weights, points):
        return _one_hot_belief(weights, points, self.classes)


@kind("process.Masking")
@dataclass(frozen=True)
class Masking(_Tokens):
    """Lost tokens become the mask, the extra token K = classes."""

    @property
    def mask(self) -> int:
        """The number of the mask token."""
        return self.classes

    def prior(self, like, noise, cond=None):
        return torch.full_like(like, self.mask)

    def corrupt(self, x, t, noise, start=None):
        keep = _keep(self.schedule, start, t, x)
        return torch.where(noise.uniform(x.double()) < keep, x, self.mask)

    def bridge(self, xt, posterior, t, s, noise):
        (alpha_s, _), (alpha_t, _) = self.schedule.alpha_sigma(s), self.schedule.alpha_sigma(t)
        reveal = expand((alpha_s - alpha_t) / (1 - alpha_t), xt.double())
        opened = (xt == self.mask) & (noise.at("when").uniform(xt.double()) < reveal)
        return torch.where(opened, self.draw(xt, posterior, noise), xt)

    def draw(self, xt: Tensor, posterior: CategoricalPosterior, noise) -> Tensor:
        """x_0 drawn from the posterior at every position, (B, *event)."""
        return draw_categorical(posterior.log_probs, noise.at("what").uniform(xt.double()))

    def loss(self, posterior, x0, xt, t):
        """-log p(x_0) summed over the masked positions: with the weight -alpha' / (1 - alpha) the variational bound.

        Sahoo et al. 2024, arXiv:2406.07524, Eq. 10.
        """
        log_p = posterior.log_probs.gather(-1, x0.unsqueeze(-1)).squeeze(-1)
        return -flat(log_p.masked_fill(xt != self.mask, 0.0)).sum(1)

    def log_likelihood(self, xt, points, t):
        # kept and masked counts are the row's own, so only agreement of the visible tokens tells points apart
        x, y = flat(xt)[:, None], flat(points)[None]
        agrees = ((x == y) | (x == self.mask)).all(-1)
        return torch.where(agrees, 0.0, -torch.inf).double()


@kind("process.UniformTokens")
@dataclass(frozen=True)
class UniformTokens(_Tokens):
    """Lost tokens are redrawn uniformly from the K classes (the same token included)."""

    def prior(self, like, noise, cond=None):
        return self._uniform(like, noise)

    def _uniform(self, like: Tensor, noise) -> Tensor:
        return (noise.uniform(like.double()) * self.classes).long()

    def corrupt(self, x, t, noise, start=None):
        keep = _keep(self.schedule, start, t, x)
        return torch.where(noise.at("when").uniform(x.double()) < keep, x, self._uniform(x, noise.at("what")))

    def _step(self, keep: Tensor, x: Tensor) -> Tensor:
        """q(x = j | previous = i) for the observed j and every i: (B, *event, K)."""
        onehot = torch.nn.functional.one_hot(x, self.classes).double()
        return keep.unsqueeze(-1) * onehot + (1 - keep.unsqueeze(-1)) / self.classes

    def bridge(self, xt, posterior, t, s, noise):
        """x_s ~ sum over x_0 of p(x_0 | x_t) q(x_s | x_t, x_0).  Austin et al. 2021, Eq. 3 and 4."""
        keep_s, keep_t = _keep(self.schedule, None, s, xt), _keep(self.schedule, None, t, xt)
        forward = self._step(_keep(self.schedule, s, t, xt), xt)
        # q(x_s = i | x_0 = c) = keep_s [i = c] + (1 - keep_s)/K, and q(x_t | x_0 = c) normalises each x_0 apart
        share = posterior.mean.double() / self._step(keep_t, xt)
        spread = (1 - keep_s.unsqueeze(-1)) / self.classes * share.sum(-1, keepdim=True)
        probs = forward * (keep_s.unsqueeze(-1) * share + spread)
        return draw_categorical(probs.log(), noise.uniform(xt.double()))

    def loss(self, posterior, x0, xt, t):
        """-log p(x_0) summed over all positions."""
        return -flat(posterior.log_probs.gather(-1, x0.unsqueeze(-1)).squeeze(-1)).sum(1)

    def log_likelihood(self, xt, points, t):
        x, y = flat(xt)[:, None], flat(points)[None]
        keep = _keep(self.schedule, None, t, x)
        same = keep + (1 - keep) / self.classes
        return torch.where(x == y, same.log(), ((1 - keep) / self.classes).log()).sum(-1)
