"""What every exact distribution offers.

A distribution p(x_0) is exact here when its blurred versions p_t, the laws of x_t = alpha x_0 + sigma eps, are known in
closed form, and with them the posterior mean (the denoiser), the score and the probability flow at every noise level.
Each kind states one formula, `at(x, alpha, sigma)`; the denoisers, draws and reference flow follow from it.

Components (of a mixture) and atoms may carry labels. A condition {"label": (B,)} restricts each sample to the
components with its label; the number of classes itself, or no label, means no restriction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.exact.flow import reference_flow
from backdrift.noise import Noise
from backdrift.posterior import expand
from backdrift.process.base import Process, State

if TYPE_CHECKING:
    from backdrift.exact.denoiser import ExactDenoiser


class Blurred(NamedTuple):
    """log p_t(x) (B,), the posterior mean E[x_0 | x_t = x] (B, D) and the score grad log p_t(x) (B, D), in float64."""

    log_prob: Tensor
    mean: Tensor
    score: Tensor


class Distribution(ABC):
    """A law of x_0 over K weighted parts.

    event_shape: the shape of one sample. dtype: of the answers. log_weights: (K,) float64, normalised. labels: (K,)
    long or None. degenerate: True where there is no density at sigma = 0.
    """

    event_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    log_weights: Tensor
    labels: Tensor | None
    degenerate: bool

    @abstractmethod
    def at(self, x: Tensor, alpha: Tensor, sigma: Tensor, wanted: Tensor | None = None) -> Blurred:
        """The blurred law at x (B, D) float64; alpha, sigma: (B,) float64; wanted: labels (B,) or None."""

    @abstractmethod
    def weights_at(self, x: Tensor, alpha: Tensor, sigma: Tensor, wanted: Tensor | None = None) -> Tensor:
        """p(part | x_t = x), (B, K) float64; arguments as in `at`."""

    @abstractmethod
    def take(self, index: Tensor, noise: Noise) -> State:
        """One sample from each of the parts index (B,): (B, *event)."""

    @abstractmethod
    def scales(self) -> tuple[Tensor, float, float]:
        """(mean (D,) float64, standard deviation per coordinate, the smallest standard deviation of a part)."""

    @abstractmethod
    def given(self, measurement, y: Tensor) -> Distribution:
        """The exact posterior of x_0 under a measurement y, as another exact distribution."""

    @abstractmethod
    def denoiser(self, process: Process) -> ExactDenoiser:
        """E[x_0 | x_t] under a process, as a `Denoiser`."""

    @property
    def weights(self) -> Tensor:
        """(K,) float64, they sum to 1."""
        return self.log_weights.exp()

    @property
    def classes(self) -> int:
        """The number of labels in use, 0..classes-1; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def log_prob(self, x: Tensor, cond: Mapping | None = None) -> Tensor:
        """log p(x_0 = x), (B,); x: (B, *event).

        Raises `UserError` where there is no density (atoms without bandwidth, a singular covariance).
        """
        if self.degenerate:
            raise UserError("This distribution has no density: give the atoms a bandwidth, or ask at a time t > 0.")
        one = torch.ones(len(x), dtype=torch.float64, device=x.device)
        return self.at(x.reshape(len(x), -1).double(), one, 0 * one, self.wanted(cond, len(x))).log_prob.to(self.dtype)

    def draw(self, n: int, seed: int = 0, cond: Mapping | None = None) -> State:
        """n independent samples, (n, *event); sample i depends on (seed, i) and its condition alone."""
        noise = Noise.of(seed, n)
        uniform = noise.at("part").uniform(torch.empty(n, dtype=torch.float64, device=self.log_weights.device))
        wanted = self.wanted(cond, n)
        if wanted is None:
            return self.take(_invert(self.weights, uniform), noise.at("value"))
        index = torch.empty(n, dtype=torch.long, device=uniform.device)
        for label in wanted.unique().tolist():
            here = wanted == label
            allowed = self.weights if label == self.classes else self.weights * (self.labels == label)
            index[here] = _invert(allowed, uniform[here])
        return self.take(index, noise.at("value"))

    def flow(
        self, x: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor], wanted: Tensor | None, steps: int
    ) -> Tensor:
        """The probability-flow map of x (B, D) from (alpha, sigma) = start to end, each (B,); float64."""
        centre, scale, finest = self.scales()
        scale = scale or 1.0

        def mean(z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            x = scale * z + alpha[:, None] * centre
            return (self.at(x, alpha, scale * sigma, wanted).mean - centre) / scale

        # in units of the data: zero mean and unit variance
        (a, s), (a_end, s_end) = start, end
        floor = 1e-4 * min(max(finest / scale, 1e-6), 1.0) if finest else 1e-5
        norm, norm_end = torch.hypot(a, s / scale), torch.hypot(a_end, s_end / scale)
        z = (x - a[:, None] * centre) / (scale * norm)[:, None]
        z = reference_flow(mean, z, torch.atan2(s / scale, a), torch.atan2(s_end / scale, a_end), steps, floor)
        return (scale * norm_end)[:, None] * z + a_end[:, None] * centre

    def wanted(self, cond: Mapping | None, count: int) -> Tensor | None:
        """The condition's labels as (B,), or None where nothing is restricted.

        Raises `UserError` for labels out of range, labels without any weight, or a distribution without labels.
        """
        label = None if cond is None else cond.get("label")
        if label is None:
            return None
        if self.labels is None:
            raise UserError("A label was given, but this distribution has none: pass labels= when building it.")
        label = expand(label, self.labels)
        if label.ndim and len(label) != count:
            raise UserError(f"There are {len(label)} labels for a batch of {count}.")
        label = label.expand(count)
        if bool((label < 0).any() or (label > self.classes).any()):
            raise UserError(f"Labels go from 0 to {self.classes - 1}, and {self.classes} means no label.")
        if bool(torch.isneginf(self.log_share(label)).any()):
            raise UserError("A label was given that no component or atom of positive weight carries.")
        return None if bool((label == self.classes).all()) else label

    def log_share(self, wanted: Tensor | None) -> Tensor | float:
        """The log of the weight that is open to each sample, (B,); 0 where nothing is restricted."""
        if wanted is None:
            return 0.0
        mass = torch.zeros(self.classes + 1, dtype=torch.float64, device=self.labels.device)
        mass.index_add_(0, self.labels, self.weights)[-1] = 1.0
        return mass.log()[wanted]

    def allowed(self, wanted: Tensor) -> Tensor:
        """(B, K), True where part k is open to sample b."""
        wanted = wanted[:, None]
        return (wanted == self.labels) | (wanted == self.classes)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices (B,) with probabilities proportional to weights (K,), by inverting their cumulative sum."""
    cumulative = weights.cumsum(0)
    last = weights.nonzero().max()
    return torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp_max(last)


def normalised(weights: Tensor, count: int) -> Tensor:
    """log of non-negative weights (count,), scaled to sum to 1, in float64. Raises `UserError` otherwise."""
    weights = torch.as_tensor(weights).double()
    if weights.shape != (count,):
        raise UserError(f"The weights have shape {tuple(weights.shape)}; {count} numbers are needed, one per part.")
    if not bool(torch.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise UserError("Weights must be finite, non-negative and not all zero.")
    return (weights / weights.sum()).log()


def checked_labels(labels: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """Labels as a long tensor (count,), or None. Raises `UserError` for another shape or negative values."""
    if labels is None:
        return None
    labels = torch.as_tensor(labels, device=device).long()
    if labels.shape != (count,) or bool((labels < 0).any()):
        raise UserError(f"Labels must be {count} numbers from 0 up, one per part, not {tuple(labels.shape)}.")
    return labels
