"""Guidance by a gradient: the mean moved along grad_{x_t} of some log-density or reward.

    D <- D + (sigma^2 / alpha) g(x_t, t),      which adds g to the score (Tweedie's formula).

With g = grad log p(c | x_t) it is Bayes' rule, and exact for an exact classifier. With a reward of the predicted x_0,
g = grad_{x_t} r(D(x_t)), it samples roughly exp(r) p: roughly, because r of the mean is not the mean of exp(r).
Every sample is moved on its own, except by `Apart`, whose purpose is the batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.guide.classifier import NoisyClassifier
from backdrift.posterior import TensorPosterior, expand, flat
from backdrift.process.gaussian import Gaussian

LEAST = 1e-3  # alpha / sigma below which x_t says nothing: the gradient is taken at the time where it is this


class Moved(Denoiser):
    """`denoiser` with its mean moved along a gradient. Subclasses state `gradient`.

    Raises `UserError` for a process that is not Gaussian.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        if not isinstance(denoiser.process, Gaussian):
            raise UserError(f"Gradients guide a Gaussian process, not {type(denoiser.process).__name__}.")
        self.denoiser = denoiser
        self.process, self.event_shape = denoiser.process, denoiser.event_shape
        self.sigma_data = getattr(denoiser, "sigma_data", 0.5)
        self.first = first_informative(self.process)

    @abstractmethod
    def gradient(self, x: Tensor, mean: Tensor, t: Tensor, cond: Mapping | None) -> Tensor:
        """g, (B, *event). x: x_t, a leaf that requires gradients; mean: D(x_t), with the graph back to x."""

    def forward(self, xt: Tensor, t: float | Tensor, cond: Mapping | None = None) -> TensorPosterior:
        # sigma^2 / alpha is infinite at alpha = 0, and g zero: what they make together is taken just below
        t = torch.as_tensor(t, dtype=torch.float64).clamp_max(self.first)
        alpha, sigma = self.process.schedule.alpha_sigma(t)
        with torch.enable_grad():
            x = xt.detach().requires_grad_()
            belief = self.denoiser(x, t, cond)
            moved = expand(sigma**2 / alpha, xt) * self.gradient(x, belief.mean, t, cond)
        # at sigma = 0 the state is the answer
        mean = belief.mean.detach() + torch.where(expand(sigma, xt) > 0, moved.detach(), 0.0)
        fraction = None if belief.fraction is None else belief.fraction.detach()
        return TensorPosterior(mean, fraction)


class Classifier(Moved):
    """Bayes' rule with a classifier of noisy states. Dhariwal and Nichol 2021, arXiv:2105.05233, Eq. 10.

    log_prob: called as log_prob(x_t, t, cond), gives log p(cond | x_t) (B,) with a gradient in x_t; `exact_classifier`,
    or a trained `NoisyClassifier`. weight: 1 is Bayes' rule, more exaggerates. forget: the conditions that the denoiser
    itself is not given.

    Raises `UserError` for a trained classifier of states of another shape.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_prob: Callable[[Tensor, Tensor, Mapping], Tensor],
        weight: float = 1.0,
        forget: tuple[str, ...] = ("label",),
    ):
        super().__init__(Forgetful(denoiser, forget))
        if isinstance(log_prob, NoisyClassifier):
            log_prob.check_event(self.event_shape)
            # its answer depends on the states, not on the schedule that it was trained on
            log_prob = log_prob.on(self.process)
        self.log_prob, self.weight = log_prob, finite(weight)

    def gradient(self, x, mean, t, cond):
        return self.weight * torch.autograd.grad(self.log_prob(x, t, cond).sum(), x)[0]


class Reward(Moved):
    """Towards states whose predicted x_0 has a high reward, or a low energy with its sign changed.

    reward: maps x_0 (B, *event) to (B,), each from its own sample, differentiably. weight: of its gradient.
    """

    def __init__(self, denoiser: Denoiser, reward: Callable[[Tensor], Tensor], weight: float = 1.0):
        super().__init__(denoiser)
        self.reward, self.weight = reward, finite(weight)

    def gradient(self, x, mean, t, cond):
        value = self.reward(mean)
        if value.shape != x.shape[:1]:
            raise UserError(f"A reward gives one number per sample, ({len(x)},), not {tuple(value.shape)}.")
        return self.weight * torch.autograd.grad(value.sum(), x)[0]


class Apart(Moved):
    """Samples of a batch that repel each other, for variety. The one guidance under which a sample depends on its
    neighbours.

    The batch is drawn from prod_i p(x_i) exp(-weight sum_{j != i} k(D_i, D_j)) in place of prod_i p(x_i), with
    k = exp(-|D_i - D_j|^2 / h) and h the median squared distance over log B. Corso et al. 2023, arXiv:2310.13102,
    Eq. 4 and section 5.
    """

    def __init__(self, denoiser: Denoiser, weight: float = 1.0):
        super().__init__(denoiser)
        self.weight = finite(weight)

    def gradient(self, x, mean, t, cond):
        if len(x) < 2:
            return torch.zeros_like(x)
        gaps = (flat(mean)[:, None] - flat(mean)[None]).square().sum(-1)
        off = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        width = gaps[off].detach().median().clamp_min(1e-12) / torch.log(torch.tensor(float(len(x)))).clamp_min(0.5)
        # every pair is counted twice in the matrix and once in the law
        potential = -self.weight * torch.exp(-gaps / width).masked_fill(~off, 0.0).sum() / 2
        return torch.autograd.grad(potential, x)[0]


class Forgetful(Denoiser):
    """`denoiser`, never told the conditions `forget`."""

    def __init__(self, denoiser: Denoiser, forget: tuple[str, ...]):
        super().__init__()
        self.denoiser, self.forget = denoiser, tuple(forget)
        self.process, self.event_shape = denoiser.process, denoiser.event_shape
        self.sigma_data = getattr(denoiser, "sigma_data", 0.5)

    def forward(self, xt, t, cond=None):
        return self.denoiser(xt, t, {name: v for name, v in (cond or {}).items() if name not in self.forget})


def finite(weight: float) -> float:
    """Raises `UserError` for a weight that is not; a negative one leads the other way."""
    if not math.isfinite(weight):
        raise UserError(f"The weight of a gradient is a finite number, not {weight}.")
    return float(weight)


def first_informative(process: Gaussian) -> float:
    """The largest time with alpha >= LEAST sigma: 1 where the schedule keeps that much."""
    alpha, sigma = process.schedule.alpha_sigma(1.0)
    if alpha >= LEAST * sigma:
        return 1.0
    return float(process.schedule.time(2 * torch.tensor(LEAST, dtype=torch.float64).log()))
