"""Consistency models in discrete time: a network that says from any state of a path where the path ends.

Along the probability flow the answer f(x_t, t) = x_0 is the same from every t. A `Network`'s mean at sigma = 0 is the
state itself, so the boundary condition f(x, 0) = x is built in, and what distillation changes is only what the mean
*means*: from the average of all x_0 that x_t may come from, to the end of its path. A student is therefore an ordinary
run, sampled by `bd.solvers.Jump`.

Both objectives compare the network at t with itself, without gradient, at an earlier r on (nearly) the same path:

    L = d(f(x_t, t), f(x_r, r)) / (t - r)          times in sigma / alpha, in units of the data

`EasyConsistency` takes x_r from the data and the same noise, which needs no teacher and is right as r -> t.
`ConsistencyDistillation` takes x_r by a step of the teacher, the network as it was at the start.
The loss's value is no measure of progress: it grows as r approaches t while the samples get better.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.denoiser import Denoiser, Network
from backdrift.errors import UserError
from backdrift.fewstep.tangent import norm, random_state, replayed
from backdrift.guide import ClassifierFree
from backdrift.objective.base import Losses, Objective
from backdrift.posterior import expand
from backdrift.sample.default import default_grid
from backdrift.schedule import Schedule

UNIT = 0.5  # the standard deviation of the data for which the constants of the papers are meant
LEAST = 1e-3  # sigma / alpha in those units below which a state counts as clean


@kind("objective.EasyConsistency")
@dataclass(frozen=True)
class EasyConsistency(Objective):
    """From data, best started from a trained network. Geng et al. 2024, arXiv:2406.14548, section 3 and appendix A.

        r = t (1 - n(t) / base^(k + 1)) or 0,   n(t) = 1 + 8 sigmoid(-t),   k = stage

    base: how much nearer r comes with each stage. stages: of equal length; with 1 and a large base the distance is
    fixed. smooth: c of the distance sqrt(|f - f_r|^2 + c^2) - c; 0 is the plain norm.
    """

    base: float = 256.0
    stages: int = 1
    smooth: float = 0.0

    def __post_init__(self):
        if not (self.base > 1 and self.stages >= 1 and self.smooth >= 0):
            raise UserError("EasyConsistency needs base > 1, at least one stage, and smooth >= 0.")

    @property
    def ends_path(self):
        return True

    def earlier(self, level: Tensor, progress: Tensor) -> Tensor:
        """r for t, both in sigma / alpha in the papers' units, (B,)."""
        stage = (progress * self.stages).floor().clamp(0, self.stages - 1)
        n = 1 + 8 * torch.sigmoid(-level)
        return (level * (1 - n / self.base ** (stage + 1))).clamp_min(0)

    def losses(self, network, head, samples):
        schedule, noise = network.process.schedule, samples.noise
        level = noise_level(network, samples.t)
        before = self.earlier(level, samples.progress)
        before = torch.where(before < LEAST, 0.0, before)
        xt = network.process.corrupt(samples.x0, samples.t, noise)
        r = time_at(network, schedule, before)
        xr = network.process.corrupt(samples.x0, r, noise)
        state = random_state()
        end = network(xt, samples.t, samples.cond).mean
        with torch.no_grad(), replayed(state):
            target = network(xr, r, samples.cond).mean
        target = torch.where(expand(before == 0, xt).bool(), samples.x0, target)
        return paired(network, end, target, level - before, self.smooth)


@kind("objective.ConsistencyDistillation")
@dataclass(frozen=True)
class ConsistencyDistillation(Objective):
    """From a teacher: x_r is one Heun step of its flow from x_t. Song et al. 2023, arXiv:2303.01469, Algorithm 2.

    steps: of the grid, the library's default one, on which t and r are neighbours. guidance: of the teacher, for
    models with labels; the student then follows labels with this weight at one pass per call.
    """

    steps: int = 18
    guidance: float = 1.0
    smooth: float = 0.0

    def __post_init__(self):
        if self.steps < 2 or self.guidance < 0 or self.smooth < 0:
            raise UserError("ConsistencyDistillation needs at least 2 steps, guidance >= 0 and smooth >= 0.")

    @property
    def ends_path(self):
        return True

    def head(self, network):
        return Teacher(network)

    def losses(self, network, head, samples):
        schedule = network.process.schedule
        grid = default_grid(network).times(schedule, self.steps)
        # t's place in its law chooses the interval
        place = (samples.place * self.steps).long().clamp(0, self.steps - 1)
        t, r = grid[place], grid[place + 1]
        xt = network.process.corrupt(samples.x0, t, samples.noise)
        with torch.no_grad():
            teacher = head.guided(self.guidance, samples.cond)
            xr = heun(teacher, schedule, xt, t, r, samples.cond)
        level, before = noise_level(network, t), noise_level(network, r)
        before = torch.where(before < LEAST, 0.0, before)
        state = random_state()
        end = network(xt, t, samples.cond).mean
        with torch.no_grad(), replayed(state):
            target = network(xr, r, samples.cond).mean
        # at the clean end the state is the answer
        alpha, _ = schedule.alpha_sigma(r)
        target = torch.where(expand(before == 0, xt).bool(), xr / expand(alpha, xr), target)
        return paired(network, end, target, level - before, self.smooth)


class Teacher(nn.Module):
    """The network as it was when the training began: fixed, and kept in the checkpoints."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # a training starts from a denoiser, whatever it makes of it
        self.network.ends_path = False
        self.network.told = tuple(name for name in self.network.told if name != "toward")

    def guided(self, guidance: float, cond) -> Denoiser:
        """The teacher under classifier-free guidance, where there is a label to follow."""
        if guidance == 1 or "label" not in cond:
            return self.network
        return ClassifierFree(self.network, guidance)


def paired(network: Network, end: Tensor, target: Tensor, gap: Tensor, smooth: float) -> Losses:
    """(sqrt(|end - target|^2 + c^2) - c) / gap, per root of the dimension, (B,)."""
    unit = network.sigma_data / UNIT
    distance = norm(end - target) / unit
    if smooth > 0:
        distance = (distance.square() + smooth**2).sqrt() - smooth
    size = math.prod(network.event_shape)
    total = distance / (gap.to(distance) * math.sqrt(size))
    return Losses(total, total.detach())


def noise_level(network: Network, t: Tensor) -> Tensor:
    """sigma / alpha in the papers' units, (B,) float64; 0 at the clean end, at most 1e6."""
    alpha, sigma = network.process.schedule.alpha_sigma(t)
    return (sigma / alpha.clamp_min(1e-12) * (UNIT / network.sigma_data)).clamp_max(1e6)


def time_at(network: Network, schedule: Schedule, level: Tensor) -> Tensor:
    """The inverse of `noise_level`, within [0, 1]."""
    ratio = level * (network.sigma_data / UNIT)
    return schedule.time(-2 * ratio.clamp_min(1e-30).log()).clamp(0, 1)


def heun(teacher: Denoiser, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, cond) -> Tensor:
    """x_s on the teacher's flow through x_t, by the exponential trapezoid rule, of second order. t, s: (B,)."""
    (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    keep = expand(sigma_s / sigma, x)
    gain = expand(alpha_s - sigma_s / sigma * alpha, x)
    first = teacher(x, t, cond).mean
    guess = keep * x + gain * first
    # at sigma = 0 the denoiser returns the state: the first answer is kept there
    clean = expand(sigma_s == 0, x).bool()
    second = torch.where(clean, first, teacher(guess, s, cond).mean)
    return keep * x + gain * (first + second) / 2
