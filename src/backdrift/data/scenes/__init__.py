"""Pictures that are known by heart: a few shapes on black, drawn from a seed, each with a caption.

`scenes(count, seed)` draws a training set. Because what a picture should show can be read from its caption, and what it
does show from its pixels (`right`), a model that draws from text is measured exactly and by kind of composition, on
combinations that no training picture has (`held_out`). `scene(seed, i).placed` are the attributes behind a picture.
"""

from __future__ import annotations

import torch

from backdrift.data.pictures import Pictures
from backdrift.data.scenes.checker import agrees, right, see
from backdrift.data.scenes.render import Placed, Scene, draw, many, scene, show
from backdrift.data.scenes.words import HELD_OUT, Meaning, Thing, held_out, trained
from backdrift.errors import UserError

__all__ = [
    "HELD_OUT",
    "Meaning",
    "Placed",
    "Scene",
    "Thing",
    "agrees",
    "draw",
    "held_out",
    "many",
    "right",
    "scene",
    "scenes",
    "see",
    "show",
    "trained",
]

_CHUNK = 4096


def scenes(count: int = 20_000, *, seed: int = 0, validation: float = 0.05) -> Pictures:
    """The first `count` training scenes of `seed`: (3, 24, 24), with `texts` and without labels.

    validation: the fraction that `split` holds out. Scenes of few things repeat, and copies are never held out, so the
    held-out part is mostly of two things.

    Raises `UserError` for fewer than two scenes.
    """
    if count < 2:
        raise UserError(f"A set of scenes has at least two, not {count}.")
    found, pixels = [], torch.empty(count, 3, 24, 24, dtype=torch.uint8)
    for low in range(0, count, _CHUNK):
        for one in many(seed, range(low, min(count, low + _CHUNK))):
            pixels[len(found)] = one.pixels
            found.append(one.text)
    source = {"kind": "scenes", "count": count, "seed": seed, "validation": validation}
    made = Pictures(pixels, None, (), [f"scene {i}" for i in range(count)], source, found, validation)
    source["fingerprint"] = made.fingerprint
    return made
