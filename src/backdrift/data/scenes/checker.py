"""What a picture shows, read back from its pixels alone, and whether that is what a caption says.

Each pixel's colour is which of its three channels are above half. Connected pixels of one colour are a thing. Its
shape is told by how full each ninth of its bounding box is, its size by the sides of that box. A thing whose ninths
resemble no shape, or whose sides are not both small or both large, is unknown, and a picture with an unknown thing
agrees with no caption. Specks of fewer than `SPECK` pixels are overlooked.

Nothing here knows how scenes are placed, and the ideal shapes are the only thing shared with the drawing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backdrift.data.scenes.render import Placed, coverage
from backdrift.data.scenes.words import COLOURS, OPPOSITE, SHAPES, SIZES, Meaning
from backdrift.errors import UserError

SPECK = 6  # pixels; the smallest thing, a small triangle, has 18
RESEMBLES = 0.6  # largest distance of the nine shares to a shape's; two shapes are at least 0.9 apart
SIDES = {size: range(side - 1, side + 2) for size, side in SIZES.items()}  # of a box, in pixels


def see(pictures: Tensor) -> list[tuple[Placed, ...] | None]:
    """The things in each picture (B, 3, H, W) in [-1, 1], row by row; None where one of them is unknown.

    Raises `UserError` for pictures without three channels.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise UserError(f"Scenes are pictures (B, 3, H, W), not {tuple(pictures.shape)}.")
    light = ((pictures.float().cpu() + 1) / 2).clamp(0, 1)
    on = (light > 0.5).long()
    code = on[:, 0] + 2 * on[:, 1] + 4 * on[:, 2]
    part = components(code)
    return [_things(*one) for one in zip(light.numpy(), code.numpy(), part.numpy(), strict=True)]


def agrees(meaning: Meaning, things: Sequence[Placed] | None) -> bool:
    """Whether a picture of `things` (from `see`) shows exactly what `meaning` says, and nothing else."""
    if things is None or len(things) != (meaning.count if meaning.other is None else 2):
        return False
    if meaning.other is None:
        return all(_is(one, meaning.thing) for one in things)
    return any(
        _is(a, meaning.thing) and _is(b, meaning.other) and relation(a, b) == meaning.relation
        for a, b in (things, tuple(things)[::-1])
    )


def right(captions: Sequence[str], pictures: Tensor) -> list[bool]:
    """Whether each picture (B, 3, H, W) in [-1, 1] shows what its caption says. Raises `UserError` for other texts."""
    meanings = [Meaning.read(text) for text in captions]
    return [agrees(meaning, things) for meaning, things in zip(meanings, see(pictures), strict=True)]


def relation(a: Placed, b: Placed) -> str | None:
    """Where a is, seen from b: along the axis on which their centres differ more. None where neither does."""
    dx, dy = (p - q for p, q in zip(a.centre, b.centre, strict=True))
    if abs(dx) == abs(dy):
        return None
    word = "left of" if abs(dx) > abs(dy) else "above"
    return word if (dx if abs(dx) > abs(dy) else dy) < 0 else OPPOSITE[word]


def components(code: Tensor) -> Tensor:
    """Connected regions (also over corners) of equal code 1..7, int64 (B, H, W): numbers from 1; 0 where code is 0.

    Each pixel starts with a number of its own, and takes the largest among its equal neighbours until none changes.
    """
    height, width = code.shape[1:]
    planes = (code[:, None] == torch.arange(1, 8)[:, None, None]).float()
    part = torch.arange(1.0, height * width + 1).view(height, width) * (code > 0)
    while True:
        spread = (F.max_pool2d(planes * part[:, None], 3, 1, 1) * planes).sum(1)
        if torch.equal(spread, part):
            return part.long()
        part = spread


def _things(light: np.ndarray, code: np.ndarray, part: np.ndarray) -> tuple[Placed, ...] | None:
    found = []
    for box, number in _boxes(part):
        value = int(code[part == number][0])
        colour = next((name for name, c in COLOURS.items() if c[0] + 2 * c[1] + 4 * c[2] == value), None)
        if colour is None:
            return None
        top, bottom, left, right = box
        ink = light[:, top:bottom, left:right][np.array(COLOURS[colour], dtype=bool)].mean(0)
        shape = _shape(ink)
        size = next((name for name, sides in SIDES.items() if set(ink.shape) <= set(sides)), None)
        if shape is None or size is None:
            return None
        found.append(Placed(shape, colour, size, int(left), int(top)))
    return tuple(sorted(found, key=lambda one: (one.y, one.x)))


def _boxes(part: np.ndarray) -> Iterator[tuple[tuple[int, int, int, int], int]]:
    for number in np.unique(part[part > 0]):
        rows, columns = np.nonzero(part == number)
        if len(rows) >= SPECK:
            yield (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1), number


def ninths(ink: np.ndarray) -> np.ndarray:
    """How full each ninth of a box (H, W) of shares in [0, 1] is, (3, 3)."""
    return F.interpolate(torch.from_numpy(np.kron(ink, np.ones((3, 3))))[None, None], (3, 3), mode="area")[0, 0].numpy()


@cache
def _ideal() -> dict[str, np.ndarray]:
    return {shape: ninths(coverage(shape, 60)) for shape in SHAPES}


def _shape(ink: np.ndarray) -> str | None:
    away = {shape: float(np.linalg.norm(ninths(ink) - ideal)) for shape, ideal in _ideal().items()}
    nearest = min(away, key=away.get)
    return nearest if away[nearest] < RESEMBLES else None


def _is(one: Placed, thing) -> bool:
    return (one.shape, one.colour) == (thing.shape, thing.colour) and thing.size in (None, one.size)
