"""KLIP: how far a measurement drives the posterior from the prior, as one number and as a map over pixels.

The reverse processes of the prior and of the posterior undo the same noising, so that Girsanov's formula is the
divergence of the two laws of x_0 itself. With D and D_y the two denoisers, g = alpha^2 / sigma^2 and x_t drawn from the
noised posterior,

    KL(p(x_0 | y) || p(x_0)) = 1/2 int_0^inf E |D_y(x_t) - D(x_t)|^2 dg.

The integrand is a sum over pixels, and its parts are a map whose sum is the divergence; the part of a pixel is not the
divergence of that pixel's marginal, unless pixels are independent. The measurement says "brighter" where D_y > D: the
signed map counts those parts with a plus, the others with a minus. Kheirandish, Hong and Fridovich-Keil 2026,
arXiv:2605.31596; the integral over g is the I-MMSE form of their time integral, and does not depend on the schedule.

Two estimators. `Renoised` noises finished posterior draws again, at one random level in each of equal strata: without
bias, if the draws and D_y are exact. `Path` adds up along the sampler that is running, KL = 1/2 (g_s - g_t) |D_y - D|^2
for every ancestral step from t to s: the exact divergence of the chain that ran from the prior's chain, which is no
less than that of its results, whatever D_y is.

What no such score can see: it is a function of y alone, so a change in the operator's null space does not move it; and
it falls, rather than rises, for pictures that are simpler than the training data. So judge it on both sides, against
`null`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.inverse.measurement import Measurement
from backdrift.inverse.sampler import Exact, PosteriorSampler, Steered, drawn, start
from backdrift.likelihood.ladder import Continuous
from backdrift.noise import Noise
from backdrift.posterior import expand, flat
from backdrift.sample.default import data_scale
from backdrift.sample.grids import Angle, Grid
from backdrift.sample.plan import Step
from backdrift.sample.sde import DDIM


class Piece(NamedTuple):
    """A part of the integral. width: (B,), dg. shift: (B, *event), D_y - D."""

    width: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Klip:
    """KL(posterior || prior) of N measurements, in nats, from n draws each.

    total, stderr: (N,), the estimate and its standard error over the draws. map: (N, *event), sums to total. signed:
    the same with a minus where the measurement darkens. draws: (N, n, *event), of the posterior.
    """

    total: Tensor
    stderr: Tensor
    map: Tensor
    signed: Tensor
    draws: Tensor

    @property
    def mean(self) -> Tensor:
        """The posterior's mean, (N, *event)."""
        return self.draws.mean(1)

    @property
    def std(self) -> Tensor:
        """The posterior's standard deviation per pixel, (N, *event)."""
        return self.draws.std(1)


class Problem(NamedTuple):
    """Measurements y (B, *shape) to draw from, one draw each; posterior: the prior's denoiser, guided towards them."""

    sampler: PosteriorSampler
    prior: Denoiser
    posterior: Denoiser
    measurement: Measurement
    y: Tensor
    steps: int
    noise: Noise


class Estimator(ABC):
    """How the integral is taken; subclasses are frozen dataclasses."""

    @abstractmethod
    def run(self, problem: Problem) -> tuple[Tensor, Iterator[Piece]]:
        """Posterior draws (B, *event) and the parts of the integral."""


@dataclass(frozen=True)
class Renoised(Estimator):
    """The draws, noised again at `levels` levels, which are strata of log(1 + v g), v the data's variance.

    finest: the time at which the integral stops, by default where sigma = 1e-3 alpha.
    """

    levels: int = 32
    finest: float | None = None

    def run(self, problem):
        sampler, prior, posterior, measurement, y, steps, noise = problem
        x0 = sampler(prior, measurement, y, len(y), steps=steps, noise=noise)
        return x0, self.pieces(prior, posterior, x0, noise.at("klip"))

    def pieces(self, prior: Denoiser, posterior: Denoiser, x0: Tensor, noise: Noise) -> Iterator[Piece]:
        """The parts for draws x0 (B, *event)."""
        schedule = prior.process.schedule
        nodes = Continuous(self.levels, self.finest).nodes(schedule, data_scale(prior), noise)
        for k, node in enumerate(nodes):
            alpha, sigma = schedule.alpha_sigma(node.t)
            eps = noise.at("level", k).normal(x0)
            xt = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
            yield Piece(node.width, posterior(xt, node.t).mean - prior(xt, node.t).mean)


@dataclass(frozen=True)
class Path(Estimator):
    """Along the ancestral sampler that makes the draws. Its last step, which ends without noise, is left out."""

    grid: Grid = field(default_factory=Angle)

    def run(self, problem):
        noise, seen = problem.noise, []
        x1 = start(problem.prior, problem.measurement, len(problem.y), noise)
        x0 = drawn(problem.posterior, x1, DDIM(eta=1.0), self.grid, problem.steps, noise, seen.append)
        return x0, self._pieces(problem.prior, seen)

    def _pieces(self, prior: Denoiser, seen: list[Step]) -> Iterator[Piece]:
        alpha, sigma = prior.process.schedule.alpha_sigma(torch.tensor([step.t for step in seen], dtype=torch.float64))
        for step, width in zip(seen[:-1], ((alpha / sigma) ** 2).diff(), strict=True):
            yield Piece(width.expand(len(step.state)), step.mean - prior(step.state, step.t).mean)


def klip(
    sampler: Steered | Exact,
    denoiser: Denoiser,
    measurement: Measurement,
    y: Tensor,
    n: int = 8,
    *,
    steps: int = 20,
    estimator: Estimator | None = None,
    seed: int = 0,
    batch: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> Klip:
    """KL(p(x_0 | y) || p(x_0)) for measurements y (N, *shape), from n posterior draws each.

    sampler: a posterior sampler that guides, for the draws and for D_y. denoiser: of the prior. steps: of the sampler.
    batch: samples at once, for memory only: no measurement's figures depend on another's, and all of them meet the same
    noise, so that their differences are less noisy than they are. on_progress: called with (measurements done, N).

    Raises `UserError` where the parts do not fit each other, and for a sampler that has no denoiser of its own.
    """
    if not isinstance(sampler, (Steered, Exact)):
        raise UserError(f"KLIP compares two denoisers, and {type(sampler).__name__} has none; take PiGDM() or MMPS().")
    if n < 2:
        raise UserError("KLIP needs at least 2 draws of each posterior, for its standard error.")
    estimator = estimator or Renoised()
    y = measurement.batched(y)
    done = []
    for few in y.split(1 if isinstance(sampler, Exact) else max(1, batch // n)):
        repeated = few.repeat_interleave(n, 0)
        noise = Noise(seed, torch.arange(n).repeat(len(few)))
        posterior = sampler.guide(denoiser, measurement, repeated, noise.at("guide"))
        problem = Problem(sampler, denoiser, posterior, measurement, repeated, steps, noise)
        with torch.no_grad():
            draws, pieces = estimator.run(problem)
            done.append(_gathered(draws, pieces, n))
        if on_progress is not None:
            on_progress(sum(len(part.total) for part in done), len(y))
    return Klip(*(torch.cat([getattr(part, name) for part in done]) for name in Klip.__dataclass_fields__))


def _gathered(draws: Tensor, pieces: Iterator[Piece], n: int) -> Klip:
    """The sums of the pieces over noise levels, and their means over the n draws of each measurement."""
    parts = torch.zeros_like(draws, dtype=torch.float64)
    signed = torch.zeros_like(parts)
    for piece in pieces:
        shift = piece.shift.double()
        half = expand(piece.width, shift) / 2
        parts += half * shift.square()
        signed += half * shift * shift.abs()

    def grouped(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, n))

    totals = grouped(flat(parts).sum(1))
    return Klip(totals.mean(1), totals.std(1) / n**0.5, grouped(parts).mean(1), grouped(signed).mean(1), grouped(draws))
