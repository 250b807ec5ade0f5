"""Classifier-free guidance: one network with and without its condition. Ho and Salimans 2022, arXiv:2207.12598.

    belief = uncond.lerp(cond, w)

w = 0 ignores the condition, w = 1 is the conditional model, w > 1 exaggerates what the condition changes (their Eq. 6
with w - 1 for their w). On means this is the same combination of scores, because the score is affine in the mean.
The belief to move away from may also be one under a negative condition, or a weaker model's (`AutoGuidance`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.guide.mixing import Mixing, Plain
from backdrift.guide.weights import Weights, check
from backdrift.process.base import State


class ClassifierFree(Denoiser):
    """`denoiser` guided with weight `guidance` towards its condition, away from the same call without `drop`.

    guidance: a number, or `Weights` that change with the noise. drop: the conditions that the unconditional call leaves
    out. against: what it has in their place, a negative condition; its tensors have one entry, or one per sample.
    mixing: how the two beliefs are mixed. A guided call is two passes of the network where w is neither 0 nor 1. Each
    sample is guided on its own.

    Raises `UserError` for a weight that makes no sense, or in a call whose condition has none of `drop`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guidance: float | Weights,
        drop: tuple[str, ...] = ("label",),
        against: Mapping | None = None,
        mixing: Mixing | None = None,
    ):
        super().__init__()
        self.guidance = checked(guidance)
        self.denoiser, self.drop, self.against = denoiser, tuple(drop), dict(against or {})
        self.mixing = mixing or Plain()
        self.process, self.event_shape = denoiser.process, denoiser.event_shape
        self.sigma_data = getattr(denoiser, "sigma_data", 0.5)

    def forward(self, xt: State, t: float | Tensor, cond: Mapping | None = None):
        if not any(name in (cond or {}) for name in self.drop):
            raise UserError(f"Guidance needs a condition to follow: give {' or '.join(self.drop)}.")
        count = len(next(iter(xt.values())) if isinstance(xt, Mapping) else xt)
        without = {name: value for name, value in cond.items() if name not in self.drop}
        without |= {name: rows(value, count) for name, value in self.against.items()}
        w = weight_at(self.guidance, t, self.process)
        if is_number(w, 0):
            return self.denoiser(xt, t, without)
        belief = self.denoiser(xt, t, cond)
        if is_number(w, 1):
            return belief
        return self.mixing.mix(self.denoiser(xt, t, without), belief, w)


class AutoGuidance(Denoiser):
    """`denoiser` guided away from a `weak` version of itself (smaller, or less trained), under the same condition.

    The two make similar errors, the weak one larger, so that moving away from it moves towards the truth, and does not
    narrow the samples as classifier-free guidance does. Karras et al. 2024, arXiv:2406.02507, Eq. 3.

    Raises `UserError` where the two models do not have the same process and events.
    """

    def __init__(self, denoiser: Denoiser, weak: Denoiser, guidance: float | Weights, mixing: Mixing | None = None):
        super().__init__()
        if weak.process != denoiser.process or weak.event_shape != denoiser.event_shape:
            raise UserError("The weak model must have the same process and the same shape of samples as the model.")
        self.guidance, self.mixing = checked(guidance), mixing or Plain()
        self.denoiser, self.weak = denoiser, weak
        self.process, self.event_shape = denoiser.process, denoiser.event_shape
        self.sigma_data = getattr(denoiser, "sigma_data", 0.5)

    def forward(self, xt, t, cond=None):
        w = weight_at(self.guidance, t, self.process)
        if is_number(w, 0):
            return self.weak(xt, t, cond)
        belief = self.denoiser(xt, t, cond)
        return belief if is_number(w, 1) else self.mixing.mix(self.weak(xt, t, cond), belief, w)


def checked(guidance: float | Weights) -> float | Weights:
    """A weight that makes sense. Raises `UserError` for one that is negative or not finite."""
    if isinstance(guidance, Weights):
        return guidance
    check(guidance)
    return float(guidance)


def weight_at(guidance: float | Weights, t: float | Tensor, process) -> float | Tensor:
    """The weight at t. Raises `UserError` for a changing weight on a process without a schedule."""
    if not isinstance(guidance, Weights):
        return guidance
    schedule = getattr(process, "schedule", None)
    if schedule is None:
        raise UserError(f"Weights that change with the noise need a schedule, and {type(process).__name__} has none.")
    return guidance.at(t, schedule)


def is_number(w: float | Tensor, value: float) -> bool:
    return not isinstance(w, Tensor) and w == value


def rows(value, count: int):
    """A condition of one entry as one of `count`; anything else as it is."""
    if isinstance(value, Tensor) and (value.ndim == 0 or len(value) == 1 != count):
        return value.expand(count, *value.shape[1:])
    return torch.full((count,), value) if isinstance(value, int) else value
