"""Exact distributions as ordinary denoisers, so that samplers, losses and guidance are measured against the truth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.exact.base import Blurred, Distribution
from backdrift.noise import Noise
from backdrift.posterior import Posterior, TensorPosterior
from backdrift.process import Gaussian, Process
from backdrift.process.base import State

if TYPE_CHECKING:
    from backdrift.exact.atoms import Atoms

BLOCK = 1 << 24  # elements of the temporary B x n x D comparisons in the enumeration


class ExactDenoiser(Denoiser):
    """E[x_0 | x_t] in closed form. distribution: the law of x_0; its tensors stay on their own device."""

    def __init__(self, distribution: Distribution, process: Process):
        super().__init__()
        self.distribution, self.process = distribution, process
        self.event_shape = distribution.event_shape

    @abstractmethod
    def posterior_weights(self, xt: State, t: float | Tensor, cond: Mapping | None = None) -> Tensor:
        """p(component or atom | x_t), (B, K) float64."""

    def draw(self, n: int, t: float | Tensor, seed: int = 0, cond: Mapping | None = None) -> State:
        """n independent exact samples of x_t, (n, *event); t: a float or (n,)."""
        x0 = self.distribution.draw(n, seed, cond)
        return self.process.corrupt(x0, t, Noise.of(seed, n).at("corrupt"))


class TensorDenoiser(ExactDenoiser):
    """An exact distribution under the Gaussian process.

    Answers have the distribution's dtype and can be differentiated with respect to x_t. At sigma = 0 the mean is
    x_t / alpha (for atoms: the nearest one), at alpha = 0 it is the mean of the data.
    """

    process: Gaussian

    def _levels(self, count: int, t: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.process.schedule.alpha_sigma(t)
        return alpha.to(like.device).expand(count), sigma.to(like.device).expand(count)

    def _at(self, xt: Tensor, t: float | Tensor, cond: Mapping | None) -> Blurred:
        if tuple(xt.shape[1:]) != self.event_shape:
            raise UserError(f"This distribution has events {self.event_shape}, but x_t is {tuple(xt.shape)}.")
        alpha, sigma = self._levels(len(xt), t, xt)
        return self.distribution.at(
            xt.reshape(len(xt), -1).double(), alpha, sigma, self.distribution.wanted(cond, len(xt))
        )

    def _has_density(self, t: float | Tensor) -> None:
        if self.process.project is not None:
            raise UserError("A projected process lives on a subspace and has no density in all dimensions.")
        if self.distribution.degenerate and bool((self.process.schedule.alpha_sigma(t)[1] == 0).any()):
            raise UserError("This distribution has no density at sigma = 0: ask at a time t > 0.")

    def forward(self, xt, t, cond=None) -> Posterior:
        mean = self._at(xt, t, cond).mean
        return TensorPosterior(mean.to(self.distribution.dtype).view(xt.shape))

    def score(self, xt: Tensor, t: float | Tensor, cond: Mapping | None = None) -> Tensor:
        """grad log p_t(x_t), (B, *event). Raises `UserError` where there is no density."""
        self._has_density(t)
        return self._at(xt, t, cond).score.to(self.distribution.dtype).view(xt.shape)

    def log_prob(self, xt: Tensor, t: float | Tensor, cond: Mapping | None = None) -> Tensor:
        """log p_t(x_t), (B,), in nats. Raises `UserError` where there is no density."""
        self._has_density(t)
        return self._at(xt, t, cond).log_prob.to(self.distribution.dtype)

    def posterior_weights(self, xt, t, cond=None):
        alpha, sigma = self._levels(len(xt), t, xt)
        wanted = self.distribution.wanted(cond, len(xt))
        return self.distribution.weights_at(xt.reshape(len(xt), -1).double(), alpha, sigma, wanted)

    def flow(
        self, xt: Tensor, t: float | Tensor, s: float | Tensor, cond: Mapping | None = None, steps: int = 400
    ) -> Tensor:
        """x_s on the probability flow through x_t, in either direction; x_t's shape.

        A Gaussian's is a closed form. Others take `steps` Runge-Kutta steps of four evaluations (see `exact.flow`),
        of fourth order: halve `steps` to see the error.

        Raises `UserError` if it would have to start at sigma = 0 from a distribution without a density.
        """
        start, end = self._levels(len(xt), t, xt), self._levels(len(xt), s, xt)
        if self.distribution.degenerate and bool((start[1] == 0).any()):
            raise UserError("The flow cannot leave an atom at sigma = 0: start at a time t > 0.")
        wanted = self.distribution.wanted(cond, len(xt))
        moved = self.distribution.flow(xt.reshape(len(xt), -1).double(), start, end, wanted, steps)
        return moved.to(self.distribution.dtype).view(xt.shape)


class EnumeratedDenoiser(ExactDenoiser):
    """Atoms under any process (tokens, products): Bayes' rule over all atoms, through the process's own verbs.

    A state that no atom can have led to says nothing, and the belief there is the prior.
    """

    distribution: Atoms

    def forward(self, xt, t, cond=None):
        return self.process.belief(self.posterior_weights(xt, t, cond), self.distribution.points)

    def posterior_weights(self, xt, t, cond=None):
        points, prior = self.distribution.points, self.distribution.log_weights
        count = len(next(iter(xt.values())) if isinstance(xt, Mapping) else xt)
        size = max(1, BLOCK // (count * self.distribution.event_size))
        parts = [slice(i, i + size) for i in range(0, len(prior), size)]
        logits = torch.cat([self.process.log_likelihood(xt, _rows(points, part), t) for part in parts], 1).double()
        wanted = self.distribution.wanted(cond, count)
        if wanted is not None:
            prior = torch.where(self.distribution.allowed(wanted), prior, -torch.inf)
        joint = logits + prior
        impossible = torch.isneginf(joint).all(1, keepdim=True)
        return torch.where(impossible, prior, joint).softmax(1)


def _rows(points: State, part: slice) -> State:
    return {name: p[part] for name, p in points.items()} if isinstance(points, Mapping) else points[part]
