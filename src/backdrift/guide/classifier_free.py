"""Classifier-free guidance: one network with and without its condition. Ho and Salimans 2022, arXiv:2207.12598.

    belief = uncond.lerp(cond, w)

w = 0 ignores the condition, w = 1 is the conditional model, w > 1 exaggerates what the condition changes (their Eq. 6
with w - 1 for their w). On means this is the same combination of scores, because the score is affine in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.process.base import State


class ClassifierFree(Denoiser):
    """`denoiser` guided with weight `guidance` towards its condition, away from the same call without `drop`.

    drop: the conditions that the unconditional call leaves out. A guided call is two passes of the network where
    w is neither 0 nor 1. Each sample is guided on its own.

    Raises `UserError` for a negative weight, or in a call whose condition has none of `drop`.
    """

    def __init__(self, denoiser: Denoiser, guidance: float, drop: tuple[str, ...] = ("label",)):
        super().__init__()
        if not guidance >= 0:
            raise UserError(f"A guidance weight is 0 (ignore the condition), 1 (follow it) or more, not {guidance}.")
        self.denoiser, self.guidance, self.drop = denoiser, float(guidance), tuple(drop)
        self.process, self.event_shape = denoiser.process, denoiser.event_shape
        self.sigma_data = getattr(denoiser, "sigma_data", 0.5)

    def forward(self, xt: State, t: float | Tensor, cond: Mapping | None = None):
        if not any(name in (cond or {}) for name in self.drop):
            raise UserError(f"Guidance needs a condition to follow: give {' or '.join(self.drop)}.")
        without = {name: value for name, value in cond.items() if name not in self.drop}
        if self.guidance == 0:
            return self.denoiser(xt, t, without)
        belief = self.denoiser(xt, t, cond)
        if self.guidance == 1:
            return belief
        return self.denoiser(xt, t, without).lerp(belief, self.guidance)
