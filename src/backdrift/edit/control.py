"""Condition pictures of a model that was trained with them: what it takes, what one is worth, and the known pixels.

A model of a control run, or of one trained for inpainting, is a denoiser like any other; its conditions are pictures
in `cond`, of the size of its samples (`backdrift.data.derived` says what is in them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.edit.partial import blend, check_event
from backdrift.errors import UserError
from backdrift.sample import Sampler, sample


def pictures_of(denoiser: Denoiser) -> dict[str, int]:
    """The condition pictures that a model takes, guided or not, by name, with their channels; {} for most."""
    while hasattr(denoiser, "denoiser"):
        denoiser = denoiser.denoiser
    net = getattr(denoiser, "net", None)
    while not hasattr(net, "pictures") and hasattr(net, "net"):
        net = net.net
    return dict(getattr(net, "pictures", {}))


def conditions(denoiser: Denoiser, control: Tensor | Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Condition pictures for `count` samples, as `cond` has them.

    control: by name, or alone where the model takes one; each (K, H, W), (1, K, H, W) or (count, K, H, W).

    Raises `UserError` for a model without such conditions, an unknown name, or another shape.
    """
    taken = pictures_of(denoiser)
    names = ", ".join(taken)
    if not taken:
        raise UserError(
            "This model was not trained to follow a control picture; train one with backdrift train --task control."
        )
    if isinstance(control, Tensor):
        if len(taken) > 1:
            raise UserError(f"This model takes several pictures; give them by name: {names}.")
        control = {next(iter(taken)): control}
    height, width = denoiser.event_shape[1:]
    found = {}
    for name, value in control.items():
        if name not in taken:
            raise UserError(f"This model follows no {name!r}; what it follows is {names}.")
        value = value[None] if value.ndim == 3 else value
        if value.ndim != 4 or value.shape[1:] != (taken[name], height, width) or len(value) not in (1, count):
            raise UserError(
                f"The control picture {name!r} must be {taken[name]} x {height} x {width} (channels, height, width), "
                f"one or one for each of {count} samples, not {' x '.join(map(str, value.shape))}."
            )
        found[name] = value.expand(count, *value.shape[1:])
    return found


def fill(
    denoiser: Denoiser,
    x0: Tensor,
    mask: Tensor,
    *,
    solver: Sampler | None = None,
    steps: int = 20,
    cond: Mapping | None = None,
    seed: int = 0,
    index: Sequence[int] | None = None,
) -> Tensor:
    """Pictures with the unknown part made by a model that was trained for it; known pixels are exact.

    denoiser: one that takes the conditions "known" and "mask" (`data.derived.KnownPixels`). x0: (B, *event), whose
    unknown part does not matter. mask: (H, W), (1, H, W) or (B, 1, H, W) in [0, 1], 1 where the picture is known; where
    it is less, the model is told nothing, and what it makes is blended with x0. cond: further conditions. index: the
    numbers of the samples under `seed`.

    Raises `UserError` for another model, or a mask of another size.
    """
    if not {"known", "mask"} <= pictures_of(denoiser).keys():
        raise UserError(
            "This model was not trained to fill pictures in; train one with backdrift train --task inpainting."
        )
    check_event(denoiser, x0)
    if mask.shape[-2:] != x0.shape[-2:]:
        raise UserError(
            f"The mask is {mask.shape[-1]} x {mask.shape[-2]} pixels and the picture {x0.shape[-1]} x {x0.shape[-2]}."
        )
    mask = mask.to(x0).reshape(-1, 1, *x0.shape[-2:]).expand(len(x0), -1, -1, -1)
    whole = (mask == 1).to(x0)
    told = {**(cond or {}), "known": x0 * whole, "mask": whole}
    index = range(len(x0)) if index is None else index
    made = sample(denoiser, index=index, solver=solver, steps=steps, cond=told, seed=seed)
    return blend(x0, made, mask)
