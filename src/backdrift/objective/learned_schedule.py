"""A learned noise schedule: the one on which the variational bound is estimated with the least variance.

In continuous time the denoising term of the bound is an integral over noise levels that is the same on every schedule
(Kingma et al. 2021, arXiv:2107.00630, Eq. 15). A schedule only says how often each level is asked: with t uniform, the
time w that a fixed schedule gives to the level has a density q(w), and one draw of x_0, t and eps estimates the term by

    h / q,      h(w) = |x_0 - E[x_0 | x_w]|^2 / 2  d snr/dw,         E(h / q)^2 = int E h^2 / q dw.

The mean does not depend on q, so the least variance is the least mean square (section 5.3 there). By Cauchy and Schwarz
that is at q proportional to sqrt(E h^2), the root mean square of the integrand.

`fit_schedule` gets there by stochastic gradient. q is constant on each of a number of pieces, whose probabilities are
p = softmax(theta), and

    d log E(h / q)^2 / d theta_k  =  p_k - (the part of E(h / q)^2 that falls on piece k),

which a batch of draws from the present schedule gives without a derivative of the denoiser. Nor is the denoiser
trained: a `Network` sees the noise angle alone, so it serves every schedule, and the schedule is fitted beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.objective.times import first_time, spread
from backdrift.objective.weights import Bound
from backdrift.process.gaussian import Gaussian
from backdrift.sample.default import data_scale
from backdrift.schedule import Learned, Schedule
from backdrift.target import X0

BEFORE = 1e-3  # the share of the times that is left for noise finer than the bound's finest


def fit_schedule(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    cond: Mapping[str, Tensor] | None = None,
    first: float | None = None,
    pieces: int = 32,
    steps: int = 300,
    batch: int = 128,
    rate: float = 0.1,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Learned:
    """The denoiser's own schedule, at the pace of least variance of the bound on data like x0 (N, *event).

    cond: conditions of the data, (N, ...) each. first: the time of the bound's finest noise, by default where sigma =
    1e-3 alpha; from there to t = 1 the times of the learned schedule are spent as above. pieces: evenly spaced in
    log(1 + v snr), v the data's variance. steps: of the gradient, each a call of the denoiser on `batch` samples. rate:
    of the gradient, in units of the number of pieces; the result is the mean of the second half of the steps. on_step
    is told (done, steps).

    Use it in `likelihood.Continuous(clock=...)`, or as the schedule of a training with the weight `Bound` and uniform
    times. Raises `UserError` for a process or data that have no bound, or numbers that make no fit.
    """
    if not isinstance(denoiser.process, Gaussian):
        raise UserError(f"A schedule is learned for a Gaussian process, not {type(denoiser.process).__name__}.")
    if not len(x0) or tuple(x0.shape[1:]) != tuple(denoiser.event_shape):
        raise UserError(f"The denoiser knows events {tuple(denoiser.event_shape)}, but the data are {tuple(x0.shape)}.")
    if pieces < 2 or steps < 2 or batch < 1 or not 0 < rate < 1:
        raise UserError("A fit needs at least 2 pieces, 2 steps, a batch of at least 1 and a rate between 0 and 1.")
    schedule = denoiser.process.schedule
    first = first_time(schedule) if first is None else first
    if not (0 <= first < 1 and schedule.alpha_sigma(first)[1] > 0):
        raise UserError(f"The first time must lie in [0, 1) and have noise, not {first}.")
    knots = _knots(denoiser, first, pieces)
    logits = total = torch.zeros(pieces, dtype=torch.float64)
    for step in range(steps):
        noise = Noise(seed, torch.arange(batch) + step * batch).at("schedule")
        chances = logits.softmax(0)
        found, piece = _estimates(denoiser, x0, cond, knots, chances, noise)
        part = torch.zeros_like(chances).index_add(0, piece, found.square())
        logits = logits + rate * pieces * (part / part.sum() - chances)
        if step >= steps // 2:
            total = total + logits
        if on_step is not None:
            on_step(step + 1, steps)
    if not bool(total.isfinite().all()):
        raise UserError("The bound's estimates are all zero or not finite, so no schedule lowers their variance.")
    return _learned(schedule, knots, (total / (steps - steps // 2)).softmax(0))


def _knots(denoiser: Denoiser, first: float, pieces: int) -> Tensor:
    """The ends of the pieces, as times of the denoiser's schedule from `first` to 1, float64 (pieces + 1,)."""
    schedule, scale = denoiser.process.schedule, data_scale(denoiser)
    alpha, sigma = schedule.alpha_sigma(torch.tensor([first, 1.0], dtype=torch.float64))
    high, low = (scale * alpha / sigma).square().log1p()
    clock = torch.lerp(high, low, torch.linspace(0, 1, pieces + 1, dtype=torch.float64))
    knots = schedule.time((clock.expm1() / scale**2).log())
    knots[0], knots[-1] = first, 1.0
    return knots


@torch.no_grad()
def _estimates(
    denoiser: Denoiser, x0: Tensor, cond: Mapping | None, knots: Tensor, chances: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """One estimate h / q of the bound's denoising term per sample of `noise`, (B,), and the piece that it fell on."""
    process, u, ends = denoiser.process, spread(noise.at("time")), chances.cumsum(0)
    piece = torch.searchsorted(ends, u, right=True).clamp_max(len(chances) - 1)
    inside = ((u - ends[piece]) / chances[piece] + 1).clamp(0, 1)
    w = torch.lerp(knots[piece], knots[piece + 1], inside)
    chosen = noise.index % len(x0)
    device = next((p.device for p in denoiser.parameters()), x0.device)
    x = x0[chosen].to(device)
    xt = process.corrupt(x, w, noise.at("noise"))
    told = None if cond is None else {name: value[chosen].to(device) for name, value in cond.items()}
    distance = process.loss(denoiser(xt, w, told), x, xt, w).double().cpu()
    h = Bound()(process.schedule, X0(), w) * distance
    return h * knots.diff()[piece] / chances[piece], piece


def _learned(schedule: Schedule, knots: Tensor, chances: Tensor) -> Learned:
    """`schedule` at the pace at which uniform times fall on the pieces with these probabilities."""
    before = [0.0] if knots[0] > 0 else []
    share = BEFORE * len(before)
    ends = (share + (1 - share) * chances.cumsum(0)).tolist()
    return Learned(schedule, (*before, share, *ends[:-1], 1.0), (*before, *knots.tolist()))
