"""Editing by going back part of the way to noise, and sampling from there.

How far is a `strength` from 0 (nothing changes) to 1 (a new sample): the clock sigma / (alpha k + sigma), k being the
data's standard deviation, so that it means the same on every schedule. Coarse features survive small strengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.guide.classifier_free import ClassifierFree
from backdrift.noise import Noise
from backdrift.posterior import expand
from backdrift.process.gaussian import Gaussian
from backdrift.sample import default_grid, sample
from backdrift.sample.default import data_scale
from backdrift.sample.grids import Grid
from backdrift.sample.latent import carry, invert
from backdrift.sample.solver import Sampler


@kind("grid.Below")
@dataclass(frozen=True)
class Below(Grid):
    """The part of another grid's clock below the time `start`: for states that begin there."""

    grid: Grid
    top: float

    def place(self, schedule, n, start, end):
        return self.grid.times(schedule, n, min(start, self.top), end)

    def times(self, schedule, n, start=1.0, end=0.0):
        return super().times(schedule, n, min(start, self.top), end)


def time_of(denoiser: Denoiser, strength: float) -> float:
    """The time at which a state has gone `strength` of the way to noise. Raises `UserError` outside (0, 1]."""
    if not isinstance(denoiser.process, Gaussian):
        raise UserError(f"Editing serves a Gaussian process, not {type(denoiser.process).__name__}.")
    if not 0 < strength <= 1:
        raise UserError(f"A strength lies above 0 (nothing changes) and at most at 1 (a new sample), not {strength}.")
    if strength == 1:
        return 1.0
    ratio = data_scale(denoiser) * strength / (1 - strength)
    return float(denoiser.process.schedule.time(torch.tensor(-2 * math.log(ratio), dtype=torch.float64)).clamp(0, 1))


def sdedit(
    denoiser: Denoiser,
    x0: Tensor,
    strength: float,
    *,
    solver: Sampler | None = None,
    steps: int = 20,
    grid: Grid | None = None,
    cond: Mapping | None = None,
    seed: int = 0,
    index: Sequence[int] | None = None,
) -> Tensor:
    """New versions of x0 (B, *event): noised to `strength`, then sampled. Meng et al. 2022, arXiv:2108.01073, Alg. 1.

    index: the numbers of the samples under `seed`. The rest as for `bd.sample`. Raises `UserError` as that does.
    """
    check_event(denoiser, x0)
    top = time_of(denoiser, strength)
    index = torch.arange(len(x0)) if index is None else torch.as_tensor(index, dtype=torch.int64)
    xt = denoiser.process.corrupt(x0, top, Noise(seed, index).at("edit"))
    grid = Below(grid or default_grid(denoiser), top)
    return sample(denoiser, xt, solver=solver, steps=steps, grid=grid, cond=cond, seed=seed, index=index.tolist())


def vary(
    denoiser: Denoiser,
    x0: Tensor,
    share: float,
    *,
    strength: float = 1.0,
    cond: Mapping | None = None,
    steps: int = 25,
    seed: int = 0,
    index: Sequence[int] | None = None,
) -> Tensor:
    """Variations of x0 (B, *event): along its flow towards noise, part of that noise made anew, and back.

    strength: how far towards noise; below 1, what larger noise would decide is kept. share: of a quarter turn from the
    picture's own noise at that level to a fresh one: 0 returns x0 within the flow's error; 1 is all fresh, a new sample
    at strength 1 and `sdedit` by the flow below. The law of pictures is kept exactly, for any share and strength: the
    state is carried to where cos of the turn of the noise is there already, and the process itself adds the rest.
    steps: of the flow, of four evaluations each.

    Raises `UserError` for a share outside [0, 1] or a strength outside (0, 1].
    """
    if not 0 <= share <= 1:
        raise UserError(f"A variation takes a share from 0 (the same) to 1 (all noise is new), not {share}.")
    check_event(denoiser, x0)
    top, turn = time_of(denoiser, strength), share * math.pi / 2
    index = torch.arange(len(x0)) if index is None else torch.as_tensor(index, dtype=torch.int64)
    noise = Noise(seed, index).at("vary")
    if top == 1:
        own = invert(denoiser, x0, cond=cond, steps=steps)
        state = math.cos(turn) * own + math.sin(turn) * denoiser.process.prior(own, noise)
    else:
        # noise over signal of cos times that at the top, so that sin^2 of the variance at the top is still to come
        logsnr = denoiser.process.schedule.logsnr(top) - 2 * math.log(max(math.cos(turn), 1e-12))
        low = min(float(denoiser.process.schedule.time(logsnr).clamp(0, 1)), top)
        state = denoiser.process.corrupt(carry(denoiser, x0, 0.0, low, cond=cond, steps=steps), top, noise, low)
    return carry(denoiser, state, top, 0.0, cond=cond, steps=steps)


def recondition(
    denoiser: Denoiser, x0: Tensor, before: Mapping | None, after: Mapping | None, *, steps: int = 25
) -> Tensor:
    """x0 (B, *event) under another condition: to its noise with `before`, back with `after`.

    What the condition does not decide is kept in the noise. Mokady et al. 2023, arXiv:2211.09794, section 3, without
    their optimised null text; with equal conditions x0 returns within the flow's error.
    """
    check_event(denoiser, x0)
    noise = invert(denoiser, x0, cond=before, steps=steps)
    return carry(denoiser, noise, 1.0, 0.0, cond=after, steps=steps)


def between_conditions(
    denoiser: Denoiser, x0: Tensor, before: Mapping, after: Mapping, count: int, *, steps: int = 25
) -> Tensor:
    """`count` pictures on the way of each x0 (B, *event) from one condition to another: (count, B, *event), both ends
    included. The noise stays the picture's own under `before`; on the way the belief is before.lerp(after, share).

    The first is x0 within the flow's error, the last `recondition`. Raises `UserError` for fewer than 2.
    """
    if count < 2:
        raise UserError(f"A way between two conditions has at least 2 pictures, not {count}.")
    check_event(denoiser, x0)
    noise = invert(denoiser, x0, cond=before, steps=steps)
    shares = [k / (count - 1) for k in range(count)]
    steered = [ClassifierFree(denoiser, share, tuple(after), before) for share in shares]
    return torch.stack([carry(each, noise, 1.0, 0.0, cond=after, steps=steps) for each in steered])


def check_event(denoiser: Denoiser, x0: Tensor) -> None:
    """Raises `UserError` unless x0 has the model's shape."""
    if tuple(x0.shape[1:]) != tuple(denoiser.event_shape):
        raise UserError(f"The model edits pictures of shape {tuple(denoiser.event_shape)}, not {tuple(x0.shape[1:])}.")


def blend(known: Tensor, made: Tensor, mask: Tensor) -> Tensor:
    """`known` where mask is 1, exactly, `made` where it is 0, and between them in proportion.

    Raises `UserError` for a mask of another size.
    """
    mask = expand(mask, made) if mask.ndim < 2 else mask.to(made)
    check_mask(mask, made.shape)
    return torch.where(mask == 1, known, mask * known + (1 - mask) * made)


def check_mask(mask: Tensor, shape: Sequence[int]) -> None:
    """Raises `UserError` unless a mask spreads over pictures of `shape` (B, *event)."""
    try:
        fits = torch.broadcast_shapes(mask.shape, shape) == tuple(shape)
    except RuntimeError:
        fits = False
    if not fits:
        sizes = (" x ".join(map(str, sides)) for sides in (mask.shape, shape[1:]))
        raise UserError("The mask is {} and the pictures are {}: make them of one size.".format(*sizes))
