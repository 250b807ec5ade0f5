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
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.denoiser import Denoiser, Network
from backdrift.errors import UserError
from backdrift.fewstep.tangent import norm, random_state, replayed
from backdrift.guide import ClassifierFree
from backdrift.guide.weights import Weights
from backdrift.objective.base import Losses, Objective, Samples
from backdrift.posterior import expand
from backdrift.sample.default import default_grid
from backdrift.schedule import Schedule

UNIT = 0.5  # the standard deviation of the data for which the constants of the papers are meant
LEAST = 2.5e-3  # sigma / alpha in those units below which a state counts as clean


class FromPairs(Objective):
    """The network at t compared with itself at r < t, both on the straight line from the data to the noise."""

    @property
    def ends_path(self):
        return True

    @abstractmethod
    def pair(self, level: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        """(t, r) for a level that was drawn, all in sigma / alpha in the papers' units, (B,)."""

    @abstractmethod
    def smoothing(self, size: int) -> float:
        """c of the distance sqrt(|f - f_r|^2 + c^2) - c between answers of this many numbers."""

    def losses(self, network, head, samples):
        schedule, noise = network.process.schedule, samples.noise
        level, before = self.pair(noise_level(network, samples.t), samples.progress)
        before = torch.where(before < LEAST, 0.0, before)
        t, r = time_at(network, schedule, level), time_at(network, schedule, before)
        xt, xr = network.process.corrupt(samples.x0, t, noise), network.process.corrupt(samples.x0, r, noise)
        state = random_state()
        end = network(xt, t, samples.cond).mean
        with torch.no_grad(), replayed(state):
            target = network(xr, r, samples.cond).mean
        target = torch.where(expand(before == 0, xt).bool(), samples.x0, target)
        return paired(network, end, target, level - before, self.smoothing(math.prod(network.event_shape)))


@kind("objective.EasyConsistency")
@dataclass(frozen=True)
class EasyConsistency(FromPairs):
    """From data, best started from a trained network. Geng et al. 2024, arXiv:2406.14548, section 3 and appendix A.

        r = t (1 - n(t) / base^(k + 1)) or 0,   n(t) = 1 + 8 sigmoid(-t),   k = stage

    base: how much nearer r comes with each stage. stages: of equal length; with 1 and a large base the distance is
    fixed. smooth: c of the distance; 0 is the plain norm.
    """

    base: float = 256.0
    stages: int = 1
    smooth: float = 0.0

    def __post_init__(self):
        if not (self.base > 1 and self.stages >= 1 and self.smooth >= 0):
            raise UserError("EasyConsistency needs base > 1, at least one stage, and smooth >= 0.")

    def earlier(self, level: Tensor, progress: Tensor) -> Tensor:
        """r for t."""
        stage = (progress * self.stages).floor().clamp(0, self.stages - 1)
        n = 1 + 8 * torch.sigmoid(-level)
        return (level * (1 - n / self.base ** (stage + 1))).clamp_min(0)

    def pair(self, level, progress):
        return level, self.earlier(level, progress)

    def smoothing(self, size):
        return self.smooth


@kind("objective.ImprovedConsistency")
@dataclass(frozen=True)
class ImprovedConsistency(FromPairs):
    """From data alone: t and r are neighbours on a grid that doubles as the training goes on.

    first, last: intervals of the grid at the beginning and at the end; with `last` = `first` it stays. smooth: c over
    the root of the dimension. Song and Dhariwal 2023, arXiv:2310.14189, section 3; the grid is that of Karras et al.
    2022, arXiv:2206.00364, Eq. 5.
    """

    first: int = 10
    last: int = 1280
    smooth: float = 0.00054

    def __post_init__(self):
        if not (1 <= self.first <= self.last and self.smooth >= 0):
            raise UserError("ImprovedConsistency needs 1 <= first <= last and smooth >= 0.")

    def intervals(self, progress: Tensor) -> Tensor:
        """Of the grid, after this share of the training."""
        stages = math.floor(math.log2(self.last / self.first)) + 1
        stage = (progress * stages).floor().clamp(0, stages - 1)
        return (self.first * 2**stage).clamp_max(self.last)

    def pair(self, level, progress):
        low, high, count = 0.002 ** (1 / 7), 80 ** (1 / 7), self.intervals(progress)
        place = ((level ** (1 / 7) - low) / (high - low) * count).ceil().clamp(torch.ones_like(count), count)
        return tuple((low + at / count * (high - low)) ** 7 for at in (place, place - 1))

    def smoothing(self, size):
        return self.smooth * math.sqrt(size)


class Taught(Objective):
    """From a teacher, guided by `guidance`; with `guidance_to` by a range of weights, of which the student is told."""

    guidance: float
    guidance_to: float | None

    @property
    def told(self):
        return () if self.guidance_to is None else ("guidance",)

    def head(self, network):
        return Teacher(network)


@kind("objective.ConsistencyDistillation")
@dataclass(frozen=True)
class ConsistencyDistillation(Taught):
    """From a teacher: x_r is one Heun step of its flow from x_t. Song et al. 2023, arXiv:2303.01469, Algorithm 2.

    steps: of the grid, the library's default one, on which t and r are neighbours. guidance: of the teacher, for
    models with labels; the student then follows labels with this weight at one pass per call. With `guidance_to` it is
    told the weight, which is drawn between the two, and takes any of them when it samples (latent consistency, Luo et
    al. 2023, arXiv:2310.04378, Algorithm 1).
    """

    steps: int = 18
    guidance: float = 1.0
    smooth: float = 0.0
    guidance_to: float | None = None

    def __post_init__(self):
        check_guidance(self)
        if self.steps < 2 or self.smooth < 0:
            raise UserError("ConsistencyDistillation needs at least 2 steps and smooth >= 0.")

    @property
    def ends_path(self):
        return True

    def losses(self, network, head, samples):
        schedule = network.process.schedule
        grid = default_grid(network).times(schedule, self.steps)
        # t's place in its law chooses the interval
        place = (samples.place * self.steps).long().clamp(0, self.steps - 1)
        t, r = grid[place], grid[place + 1]
        xt = network.process.corrupt(samples.x0, t, samples.noise)
        weights = guidance_weights(self, samples)
        cond = with_guidance(samples.cond, weights)
        with torch.no_grad():
            teacher = head.guided(weights, samples.cond)
            xr = heun(teacher, schedule, xt, t, r, samples.cond)
        level, before = noise_level(network, t), noise_level(network, r)
        before = torch.where(before < LEAST, 0.0, before)
        state = random_state()
        end = network(xt, t, cond).mean
        with torch.no_grad(), replayed(state):
            target = network(xr, r, cond).mean
        # at the clean end the state is the answer
        alpha, _ = schedule.alpha_sigma(r)
        target = torch.where(expand(before == 0, xt).bool(), xr / expand(alpha, xr), target)
        return paired(network, end, target, level - before, self.smooth)


def check_guidance(objective) -> None:
    """Raises `UserError` for a guidance, or a range from `guidance` to `guidance_to`, that is none."""
    low, high = objective.guidance, objective.guidance_to
    if low < 0 or (high is not None and not 0 < low < high):
        raise UserError(f"Guidance is at least 0, and a range of it rises from above 0; {low} to {high} does not.")


def guidance_weights(objective, samples: Samples) -> float | Tensor:
    """The teacher's weight: `guidance`, or one for each sample, (B,), log-uniform from there to `guidance_to`."""
    if objective.guidance_to is None:
        return objective.guidance
    place = samples.noise.at("guidance").uniform(torch.zeros(len(samples.t), dtype=torch.float64))
    return objective.guidance * (objective.guidance_to / objective.guidance) ** place


def with_guidance(cond: Mapping[str, Tensor], weights: float | Tensor) -> Mapping[str, Tensor]:
    """What the student is given: the conditions, and the weights where each sample has its own."""
    return {**cond, "guidance": weights} if isinstance(weights, Tensor) else cond


@dataclass(frozen=True)
class PerSample(Weights):
    """A guidance weight for each sample, whatever the time."""

    values: Tensor

    def at(self, t, schedule):
        return self.values


class Teacher(nn.Module):
    """The network as it was when the training began: fixed, and kept in the checkpoints."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # a training starts from a denoiser, whatever it makes of it
        self.network.ends_path = False
        self.network.told = tuple(name for name in self.network.told if name != "toward")

    def guided(self, guidance: float | Tensor, cond) -> Denoiser:
        """The teacher under classifier-free guidance, where there is a label to follow; (B,): one weight a sample."""
        if "label" not in cond:
            return self.network
        if isinstance(guidance, Tensor):
            return ClassifierFree(self.network, PerSample(guidance))
        return self.network if guidance == 1 else ClassifierFree(self.network, guidance)


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
