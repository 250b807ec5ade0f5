"""Learning from whole paths of a teacher: where they end (mid-training), and to be straight (reflow).

Both are plain regression on what the network, as it was at the start, makes of noise. A path costs the teacher's
evaluations once, and mid-training uses every state on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.fewstep.consistency import Taught, Teacher, check_guidance, guidance_weights, with_guidance
from backdrift.objective.base import Losses, Objective
from backdrift.posterior import flat
from backdrift.sample.default import default_grid, default_solver


@kind("objective.MidTraining")
@dataclass(frozen=True)
class MidTraining(Taught):
    """From every state on a path of the teacher to its end: the start that makes consistency training short.

    steps: evaluations of the teacher on a path, and states that are learned from it. guidance, guidance_to: of the
    teacher, as in `ConsistencyDistillation`. The paths start from data noised to t = 1. Hu et al. 2025,
    arXiv:2509.24526, section 4 (with a square distance in place of a learned one).
    """

    steps: int = 16
    guidance: float = 1.0
    guidance_to: float | None = None

    def __post_init__(self):
        check_guidance(self)
        if self.steps < 2:
            raise UserError("MidTraining needs paths of at least 2 steps.")

    @property
    def ends_path(self):
        return True

    def losses(self, network, head, samples):
        count = len(samples.x0)
        # each path serves as many samples as it has states
        paths = math.ceil(count / self.steps)
        cond = {name: value[:paths] for name, value in samples.cond.items()}
        x1 = network.process.corrupt(samples.x0, 1.0, samples.noise)[:paths]
        weights = guidance_weights(self, samples)
        weights = weights[:paths] if isinstance(weights, Tensor) else weights
        times, states, ends = path_of(head.guided(weights, cond), x1, cond, self.steps)
        which, place = torch.arange(count) % paths, torch.arange(count) // paths
        xt, t = states[place, which], times[place]
        cond = with_guidance(cond, weights)
        cond = {name: value[which.to(value.device)] for name, value in cond.items()}
        end = network(xt, t, cond).mean
        # the network's own weight, as in its training, makes the loss the square error of what it predicts
        weight = network.target.weight(network.process.schedule, t)
        square = flat(end - ends[which]).square().mean(1)
        total = weight.to(square) * square
        return Losses(total, total.detach())


@kind("objective.Reflow")
@dataclass(frozen=True)
class Reflow(Objective):
    """Denoising with the noise paired to what the teacher makes of it, so that paths do not cross and become straight.

    steps: evaluations of the teacher for each pair. Liu et al. 2023, arXiv:2209.03003, section 2.2; with times from
    `times.Edges`, as Lee et al. 2024, arXiv:2405.20320, section 4.1.
    """

    steps: int = 16
    guidance: float = 1.0

    def __post_init__(self):
        if self.steps < 2 or self.guidance < 0:
            raise UserError("Reflow needs paths of at least 2 steps and guidance >= 0.")

    def head(self, network):
        return Teacher(network)

    def losses(self, network, head, samples):
        process, t = network.process, samples.t
        alpha_1, sigma_1 = (float(v) for v in process.schedule.alpha_sigma(1.0))
        x1 = process.corrupt(samples.x0, 1.0, samples.noise)
        _, _, ends = path_of(head.guided(self.guidance, samples.cond), x1, samples.cond, self.steps)
        eps = (x1 - alpha_1 * ends) / sigma_1
        alpha, sigma = (v.to(x1).view(-1, *[1] * (x1.ndim - 1)) for v in process.schedule.alpha_sigma(t))
        mean = network(alpha * ends + sigma * eps, t, samples.cond).mean
        weight = network.target.weight(process.schedule, t)
        square = flat(mean - ends).square().mean(1)
        total = weight.to(square) * square
        return Losses(total, total.detach())


@torch.no_grad()
def path_of(teacher: Denoiser, x1: Tensor, cond, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(times (steps,), states (steps, B, *event), ends (B, *event)) of the default sampler from x1."""
    schedule, seen = teacher.process.schedule, []
    plan = default_solver(teacher).plan(schedule, default_grid(teacher).times(schedule, steps))
    ends = plan.run(teacher, x1, cond, on_step=lambda step: seen.append((step.t, step.state.clone())))
    times = torch.tensor([t for t, _ in seen], dtype=torch.float64)
    return times, torch.stack([state for _, state in seen]), ends


@kind("objective.Halving")
@dataclass(frozen=True)
class Halving(Taught):
    """One stage of progressive distillation: one step of the student for two DDIM steps of the teacher.

    steps: the student's. guidance, guidance_to: of the teacher, as in `ConsistencyDistillation`. heeded: of a stage
    after the first, whose teacher is told the weight itself (Meng et al. 2023, arXiv:2210.03142). On a grid of 2
    `steps`, t -> m -> s, the target is the x_0 with which one DDIM step from x_t reaches the teacher's x_s,
    D = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t).

    Salimans and Ho 2022, arXiv:2202.00512, Algorithm 2 and appendix G; weight max(alpha^2 / sigma^2, 1), their Eq. 9.
    """

    steps: int
    guidance: float = 1.0
    guidance_to: float | None = None
    heeded: bool = False

    def __post_init__(self):
        check_guidance(self)
        if self.steps < 1:
            raise UserError("Halving needs at least 1 step for the student.")

    def losses(self, network, head, samples):
        schedule = network.process.schedule
        grid = default_grid(network).times(schedule, 2 * self.steps)
        place = (samples.place * self.steps).long().clamp(0, self.steps - 1) * 2
        t, m, s = grid[place], grid[place + 1], grid[place + 2]
        xt = network.process.corrupt(samples.x0, t, samples.noise)
        weights = guidance_weights(self, samples)
        cond = with_guidance(samples.cond, weights)
        teacher = head.network if self.heeded else head.guided(weights, samples.cond)
        asked = cond if self.heeded else samples.cond
        with torch.no_grad():
            xm = ddim_step(schedule, xt, teacher(xt, t, asked).mean, t, m)
            xs = ddim_step(schedule, xm, teacher(xm, m, asked).mean, m, s)
        keep, gain = ddim_row(schedule, t, s, xt)
        target = (xs - keep * xt) / gain
        alpha, sigma = schedule.alpha_sigma(t)
        weight = ((alpha / sigma * network.sigma_data) ** 2).clamp_min(1) / network.sigma_data**2
        square = flat(network(xt, t, cond).mean - target).square().mean(1)
        total = weight.to(square) * square
        return Losses(total, total.detach())


def ddim_row(schedule, t: Tensor, s: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(keep, gain) of DDIM's x_s = keep x_t + gain D, as (B, 1, ..) in like's dtype."""
    (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    shape = (-1, *[1] * (like.ndim - 1))
    keep = sigma_s / sigma
    return keep.to(like).view(shape), (alpha_s - keep * alpha).to(like).view(shape)


def ddim_step(schedule, x: Tensor, mean: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DDIM's step from t to s, (B,) each."""
    keep, gain = ddim_row(schedule, t, s, x)
    return keep * x + gain * mean
