"""Someone's own pictures: a folder, a `.zip`, or a NumPy file, read into one `Pictures`.

What changes a picture is chosen by the caller and never guessed: pictures of several sizes, or of other proportions
than the wanted size, are refused until a fit is named. Everything chosen is written into `source`, from which the same
pictures can be rebuilt.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from backdrift.config import to_config
from backdrift.data.cache import cached
from backdrift.data.decode import decode
from backdrift.data.entries import listing
from backdrift.data.fit import Crop, Pad, Stretch
from backdrift.data.pictures import Pictures, check_memory, check_split
from backdrift.errors import UserError


def pictures(
    path: str | os.PathLike,
    size: int | tuple[int, int] | None = None,
    *,
    channels: int | None = None,
    fit: Crop | Pad | Stretch | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    skip_broken: bool = False,
    validation: float = 0.1,
    block: int = 1,
    cache: str | os.PathLike | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Read the pictures of a folder or `.zip` (class folders and `metadata.jsonl` understood), a `.npy` or a `.npz`.

    size: side of the square, or (H, W), in pixels; None keeps the pictures' own, which must then be the same.
    channels: 1 or 3; None takes 1 if every picture is grey (red = green = blue everywhere), 3 otherwise.
    fit: what to do with other proportions or several sizes: `Crop()`, `Pad(colour)`, `Stretch()`; None refuses them.
    background: what shows through transparent pixels, red, green, blue in 0..255.
    skip_broken: leave broken pictures out; their names are in `source["skipped"]`.
    validation, block: see `Pictures.split`.
    cache: a folder where the decoded pictures are kept and read from as they are needed (`data.cache`), for sets that
    are slow to decode or larger than memory; None decodes them into memory.
    on_progress: called with (pictures done, pictures in all) while decoding.

    An animation counts as its first frame. 16-bit grey is reduced to 8 bits over its full range.

    Raises `UserError` for bad input, in one sentence, before decoding wherever that is possible.
    """
    path = Path(path).expanduser().absolute()
    size = _check_size(size, fit)
    check_split(validation, block)
    if channels not in (None, 1, 3):
        raise UserError(f"channels is {channels}; choose 1 (grey), 3 (colour), or None to see what the pictures are.")
    _check_colour(background, "background")
    if isinstance(fit, Pad):
        _check_colour(fit.colour, "padding colour")

    reading = {"size": size, "channels": channels, "fit": fit, "background": background, "skip_broken": skip_broken}
    reading = to_config(reading)
    cache = None if cache is None else Path(cache).expanduser().absolute()
    source = {"kind": "pictures", "path": str(path), **reading, "validation": validation, "block": block}
    source["cache"] = None if cache is None else str(cache)

    with listing(path) as listed:
        _check_count(len(listed.names), path)

        def build(allocate):
            return decode(listed, size, fit, background, skip_broken, channels, allocate, on_progress)

        if cache is None:
            array, good = build(_in_memory)
            pixels, census = torch.from_numpy(array), None
        else:
            kept = cached(cache, path, listed.names, reading, build)
            pixels, good, census = kept.pixels, kept.good, kept.census
    _check_count(len(good), path)
    kept = set(good)
    source["assumed"] = listed.assumed
    source["skipped"] = [name for i, name in enumerate(listed.names) if i not in kept]
    found = Pictures(
        pixels=pixels,
        labels=None if listed.labels is None else listed.labels[good],
        classes=listed.classes,
        names=[listed.names[i] for i in good],
        source=source,
        texts=None if listed.texts is None else [listed.texts[i] for i in good],
        validation=validation,
        block=block,
        census=census,
    )
    source["fingerprint"] = found.fingerprint
    return found


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    check_memory(math.prod(shape), f"{shape[0]} pictures of {shape[3]} by {shape[2]}", " or a cache folder")
    return np.empty(shape, dtype=np.uint8)


def _check_size(size, fit) -> tuple[int, int] | None:
    if size is None:
        if fit is not None:
            raise UserError(f"{type(fit).__name__} needs a size to fit the pictures to, such as size=64.")
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise UserError(f"size is {size!r}; give the side of a square in pixels, or (height, width).")
    return pair


def _check_colour(colour, what: str) -> None:
    if len(colour) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in colour):
        raise UserError(f"The {what} is {colour!r}; give red, green and blue as whole numbers from 0 to 255.")


def _check_count(count: int, path: Path) -> None:
    if count == 0:
        raise UserError(f"No picture in {path} could be read.")
    if count == 1:
        raise UserError(f"{path} holds only one picture; give at least two, since one is held out for validation.")
