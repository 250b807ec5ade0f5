"""Arithmetic on noises: pictures to their noise and back, between two pictures, and the way from noise to picture.

The probability flow is an ordinary differential equation, so every picture has one noise and every noise one picture.
`carry` follows it in either direction, with the classical fourth-order rule in the clock log tan(w / 2), where w is the
noise angle of the data divided by their diameter, sqrt(D) standard deviations for D coordinates (the derivation is in
exact/flow.py). Noise of that size decides between distant data: above it the clock is even in alpha / sigma, below in
its logarithm. Halving the steps tells the error; `round_trip` measures it. Song et al. 2021, arXiv:2011.13456, section
4.3 and appendix D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.exact.flow import reference_flow
from backdrift.posterior import expand
from backdrift.process.gaussian import Gaussian
from backdrift.sample.default import data_scale, default_grid, default_solver
from backdrift.sample.plan import Plan, Step

FLOOR = (
    1e-3  # of the standard deviation: noise below which the denoiser's answer is held, far below 8 bits of a picture
)


@torch.no_grad()
def carry(denoiser: Denoiser, x: Tensor, t: float, s: float, *, cond: Mapping | None = None, steps: int = 25) -> Tensor:
    """x (B, *event), a state at time t, carried along the probability flow to time s, earlier or later.

    steps: of four evaluations each.

    Raises `UserError` for a process that has no flow, times outside [0, 1], or no steps.
    """
    if not isinstance(denoiser.process, Gaussian):
        raise UserError(f"{type(denoiser.process).__name__} has no probability flow: latent arithmetic needs Gaussian.")
    if not (0 <= t <= 1 and 0 <= s <= 1):
        raise UserError(f"Times lie in [0, 1], but the flow was asked for from {t} to {s}.")
    if steps < 1:
        raise UserError(f"The flow needs at least 1 step, not {steps}.")
    schedule, count = denoiser.process.schedule, len(x)
    spread = math.sqrt(x[0].numel())
    scale = data_scale(denoiser) * spread

    def angle_norm(time: float) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha_sigma(torch.full((count,), float(time), dtype=torch.float64))
        return torch.atan2(sigma, alpha * scale), torch.hypot(alpha * scale, sigma)

    def mean(z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        time = schedule.time(2 * (alpha / (sigma * scale)).log()).clamp(0, 1)
        norm = torch.hypot(*(v * k for v, k in zip(schedule.alpha_sigma(time), (scale, 1), strict=True)))
        state = z.view(x.shape) * expand(norm, z.view(x.shape))
        return denoiser(state.to(x.dtype), time, cond).mean.reshape(count, -1).double() / scale

    (start, norm), (end, norm_end) = angle_norm(t), angle_norm(s)
    z = x.reshape(count, -1).double() / norm[:, None].to(x.device)
    out = reference_flow(mean, z, start, end, steps, FLOOR / spread)
    return (out * norm_end[:, None]).view(x.shape).to(x.dtype)


def invert(denoiser: Denoiser, x0: Tensor, *, cond: Mapping | None = None, steps: int = 25) -> Tensor:
    """The noises x_1 (B, *event) whose flow ends in the pictures x0."""
    return carry(denoiser, x0, 0.0, 1.0, cond=cond, steps=steps)


class RoundTrip(NamedTuple):
    """noise: x_1. back: the pictures again. error: (B,), root mean square of back - x0 over an event."""

    noise: Tensor
    back: Tensor
    error: Tensor


def round_trip(denoiser: Denoiser, x0: Tensor, *, cond: Mapping | None = None, steps: int = 25) -> RoundTrip:
    """x0 (B, *event) to its noise and back, with the error of doing so."""
    noise = invert(denoiser, x0, cond=cond, steps=steps)
    back = carry(denoiser, noise, 1.0, 0.0, cond=cond, steps=steps)
    return RoundTrip(noise, back, (back - x0).flatten(1).square().mean(1).sqrt())


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a to b (B, *event) along the arc between their directions; the norms go linearly. share: 0 is a, 1 is b.

    Noises in many dimensions all have about the same norm, which a straight line between two of them does not keep.
    Shoemake 1985, "Animating rotation with quaternion curves".
    """
    size_a, size_b = (v.flatten(1).double().norm(dim=1) for v in (a, b))
    unit_a, unit_b = (v.flatten(1).double() / n.clamp_min(1e-300)[:, None] for v, n in ((a, size_a), (b, size_b)))
    # the angle from chords: accurate for nearly equal and nearly opposite directions
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    straight = angle.sin() < 1e-9
    safe = torch.where(straight, 1.0, angle.sin())
    left = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / safe)
    right = torch.where(straight, share, (share * angle).sin() / safe)
    size = torch.lerp(size_a, size_b, share)
    out = size[:, None] * (left[:, None] * unit_a + right[:, None] * unit_b)
    return out.view(a.shape).to(a.dtype)


def between(
    denoiser: Denoiser, a: Tensor, b: Tensor, count: int, *, cond: Mapping | None = None, steps: int = 25
) -> Tensor:
    """`count` pictures from each a to each b (B, *event) through their noises: (count, B, *event), ends included.

    Raises `UserError` for fewer than 2.
    """
    if count < 2:
        raise UserError(f"A way between two pictures has at least 2 of them, not {count}.")
    noise_a, noise_b = (invert(denoiser, x, cond=cond, steps=steps) for x in (a, b))
    shares = [k / (count - 1) for k in range(count)]
    return torch.stack(
        [carry(denoiser, slerp(noise_a, noise_b, share), 1.0, 0.0, cond=cond, steps=steps) for share in shares]
    )


class Path(NamedTuple):
    """times: (N + 1,). states: (N + 1, B, *event), the last is the sample. means: (N, B, *event), E[x_0 | state]."""

    times: Tensor
    states: Tensor
    means: Tensor


@torch.no_grad()
def path(
    denoiser: Denoiser, x1: Tensor, *, steps: int = 20, plan: Plan | None = None, cond: Mapping | None = None
) -> Path:
    """The way of x1 (B, *event) from noise to picture, by the default sampler or a deterministic plan."""
    schedule = denoiser.process.schedule
    plan = plan or default_solver(denoiser).plan(schedule, default_grid(denoiser).times(schedule, steps))
    seen: list[Step] = []
    out = plan.run(denoiser, x1, cond, on_step=seen.append)
    return Path(plan.times, torch.stack([*(s.state for s in seen), out]), torch.stack([s.mean for s in seen]))
