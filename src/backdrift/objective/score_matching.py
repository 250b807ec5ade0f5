"""Score matching: fitting s(x) to grad log p(x) from samples of p alone.

The distance is the Fisher divergence E|s - grad log p|^2 / 2. By parts, all that is unknown in it is a constant:

    E|s - grad log p|^2 / 2  =  E[ |s|^2 / 2 + tr ds/dx ]  +  E|grad log p|^2 / 2

`exact` is the bracket, whose trace takes D products with the Jacobian. `sliced` replaces the trace by v^T (ds/dx) v for
random signs v, one product each, which is unbiased. `denoising` needs no derivative of s: it matches the score of the
data blurred by sigma, and is the denoising objective of this library in other units.

A score here is any function x (B, *event) -> (B, *event) that treats every sample by itself; a denoiser's score at a
noise level is `score_of(denoiser, t)`. Losses are (B,), of a whole event, in the inverse square of the data's unit, and
can be differentiated with respect to the score's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.posterior import expand, flat
from backdrift.process.gaussian import Gaussian

Score = Callable[[Tensor], Tensor]


def score_of(denoiser: Denoiser, t: float | Tensor, cond: Mapping | None = None) -> Score:
    """The score of x_t that a denoiser stands for: (alpha E[x_0 | x_t] - x_t) / sigma^2, by Tweedie's formula.

    t: a float or (B,), where sigma > 0. Raises `UserError` at sigma = 0 or for a process that is not Gaussian.
    """
    if not isinstance(denoiser.process, Gaussian):
        raise UserError(f"A score needs a Gaussian process, not {type(denoiser.process).__name__}.")
    alpha, sigma = denoiser.process.schedule.alpha_sigma(t)
    if bool((sigma == 0).any()):
        raise UserError("At sigma = 0 a denoiser says nothing about the score: ask at a later time.")

    def score(x: Tensor) -> Tensor:
        return (expand(alpha, x) * denoiser(x, t, cond).mean - x) / expand(sigma, x) ** 2

    return score


def exact(score: Score, x: Tensor) -> Tensor:
    """|s|^2 / 2 + tr ds/dx at samples x (B, *event).  Hyvarinen 2005, JMLR 6, Theorem 1.

    Costs one call of the score and D backward passes; outside `no_grad` all D are kept, so that a loss can go back.
    """
    x, s = _differentiable(score, x)
    unit = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    return s.square().sum(1) / 2 + sum(_slice(s, x, e.expand_as(s)) for e in unit)


def sliced(score: Score, x: Tensor, noise: Noise, *, slices: int = 1, reduced: bool = True) -> Tensor:
    """The mean over `slices` random signs v of v^T (ds/dx) v + (v^T s)^2 / 2; unbiased for `exact`.

    reduced: |s|^2 / 2, what the second term is on average, in its place; less variance at no cost. Each slice is one
    backward pass.  Song et al. 2019, arXiv:1905.07088, Eq. 7 and 8.

    Raises `UserError` for less than one slice.
    """
    if slices < 1:
        raise UserError(f"Sliced score matching needs at least 1 slice, not {slices}.")
    x, s = _differentiable(score, x)
    total = 0.0
    for k in range(slices):
        v = torch.where(noise.at("slice", k).uniform(s.detach()) < 0.5, -1.0, 1.0).to(s)
        total = total + _slice(s, x, v) + (0.0 if reduced else (v * s).sum(1).square() / 2)
    return total / slices + (s.square().sum(1) / 2 if reduced else 0.0)


def denoising(score: Score, x: Tensor, sigma: float | Tensor, noise: Noise) -> Tensor:
    """|s(x + sigma eps) + eps / sigma|^2 / 2, for the score of x + sigma eps; sigma: a float or (B,).

    Vincent 2011, doi:10.1162/NECO_a_00142.
    For `score_of(denoiser, t)` at x = alpha x_0 it is D times `objective.denoising` of weight alpha^2 / (2 sigma^4).
    Its expectation exceeds the Fisher divergence by a constant, as that of `exact` falls short by one.
    """
    eps, sigma = noise.normal(x), expand(torch.as_tensor(sigma), x)
    return flat(score(x + sigma * eps) + eps / sigma).square().sum(1) / 2


def _differentiable(score: Score, x: Tensor) -> tuple[Tensor, Tensor]:
    """x with a gradient, and the score there as (B, D)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = flat(score(x))
    if not s.requires_grad:
        raise UserError("This score cannot be differentiated in x, which score matching needs; is it under no_grad?")
    return x, s


def _slice(s: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v^T (ds/dx) v, (B,); s and v are (B, D)."""
    (pulled,) = torch.autograd.grad(
        s, x, v, retain_graph=True, create_graph=torch.is_grad_enabled(), allow_unused=True, materialize_grads=True
    )
    return (flat(pulled) * v).sum(1)
