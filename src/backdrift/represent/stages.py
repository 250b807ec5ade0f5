"""Sampling in two stages: a representation first, then a picture that has it (RCG, `informed`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from backdrift.errors import UserError
from backdrift.noise import mix
from backdrift.represent.informed import informed

PRIOR_STEPS = 50  # a pass of the first stage costs a thousandth of one of the second


class Sampled(Protocol):
    """A `backdrift.Model`."""

    denoiser: object
    event_shape: tuple[int, ...]

    def sample(self, *, index: Sequence[int], seed: int, steps: int, **further) -> Tensor: ...


def representations(prior: Sampled, model: Sampled, index: Sequence[int], *, label=None, seed: int = 0) -> Tensor:
    """The representations (n, size) that the samples `index` of `seed` are to show, drawn by `prior`.

    prior: a model of representations (`backdrift train --task prior`). model: the one of pictures. label: as in
    `Model.sample`, for a prior of labelled data.

    Raises `UserError` where the two do not belong together.
    """
    size = informed(model.denoiser).encoder.size
    if tuple(prior.event_shape) != (size,):
        raise UserError(
            f"The prior makes samples of shape {tuple(prior.event_shape)}, and the pictures' model is told "
            f"representations of {size} numbers: they are not of one encoder."
        )
    # a seed of its own: where both stages have as many numbers, they would start from the very same noise
    return prior.sample(index=index, label=label, seed=mix(seed) >> 2, steps=PRIOR_STEPS)


def draw(prior: Sampled, model: Sampled, n: int, *, seed: int = 0, steps: int = 20, **further) -> Tensor:
    """n pictures (n, C, H, W), each of a representation that `prior` draws. further: as `Model.sample` takes it."""
    index = list(range(n))
    told = representations(prior, model, index, label=further.get("label"), seed=seed)
    return model.sample(index=index, cond={"representation": told}, seed=seed, steps=steps, **further)
