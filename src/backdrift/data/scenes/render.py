"""Scenes drawn: where things stand, and their pixels.

A picture is 24 x 24, bright shapes on black. Shapes stand on whole pixels, with smooth edges (the covered share of each
pixel), and two things are always at least two pixels apart. Everything about scene i of a seed follows from keyed
draws, so that it is always the same, in a set of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from backdrift.data.scenes.words import COLOURS, SIZES, Meaning, Thing, trained
from backdrift.noise import Noise

SIDE = 24
GAP = 2  # pixels between things at least
SHARES = (0.25, 0.25, 0.5)  # of scenes with one thing, several alike, and two
DRAWS = 10  # uniform numbers that decide a scene


@dataclass(frozen=True)
class Placed:
    """A thing in a picture: its attributes, and the column and row of its upper left corner."""

    shape: str
    colour: str
    size: str
    x: int
    y: int

    @property
    def thing(self) -> Thing:
        return Thing(self.shape, self.colour, self.size)

    @property
    def centre(self) -> tuple[float, float]:
        """(column, row) in pixels."""
        return self.x + SIZES[self.size] / 2, self.y + SIZES[self.size] / 2


@dataclass(frozen=True)
class Scene:
    """What the caption says, and what the picture shows."""

    meaning: Meaning
    placed: tuple[Placed, ...]

    @property
    def text(self) -> str:
        """The caption."""
        return self.meaning.text

    @property
    def pixels(self) -> Tensor:
        """The picture, uint8 (3, 24, 24)."""
        return torch.from_numpy(draw(self.placed))


def scene(seed: int, index: int) -> Scene:
    """Training scene `index` of `seed`, alone; it contains nothing of `words.HELD_OUT`."""
    return many(seed, [index])[0]


def many(seed: int, indices: Sequence[int]) -> list[Scene]:
    """The training scenes `indices` of `seed`."""
    draws = _uniform(seed, indices, "scene", 4)
    meanings = []
    for kind, which, first, second in draws:
        group = trained()[int(np.searchsorted(np.cumsum(SHARES)[:-1], kind, side="right"))]
        meanings.append((_of(group, which), first < 0.5, second < 0.5))
    placed = show([full for full, *_ in meanings], seed, indices)
    return [Scene(full.unsized(*unsaid), one) for (full, *unsaid), one in zip(meanings, placed, strict=True)]


def show(meanings: Sequence[Meaning], seed: int, indices: Sequence[int]) -> list[tuple[Placed, ...]]:
    """Where the things of each meaning stand; a size unsaid is drawn. Keyed by seed and index, as everything is."""
    return [place(m, u) for m, u in zip(meanings, _uniform(seed, indices, "place", DRAWS), strict=True)]


def place(meaning: Meaning, u: Sequence[float]) -> tuple[Placed, ...]:
    """The things of `meaning` as the `DRAWS` uniform numbers `u` place them."""
    sized = [
        Thing(one.shape, one.colour, one.size or ("small" if meaning.count > 1 else _of(tuple(SIZES), v)))
        for one, v in zip(meaning.things, u, strict=False)
    ]
    u = u[2:]
    if meaning.count > 1:
        return _several(sized[0], meaning.count, u)
    if meaning.other is None:
        side = SIZES[sized[0].size]
        return (_at(sized[0], _of(range(SIDE - side + 1), u[0]), _of(range(SIDE - side + 1), u[1])),)
    return _two(sized[0], sized[1], meaning.relation, u)


def _several(thing: Thing, count: int, u: Sequence[float]) -> tuple[Placed, ...]:
    """`count` alike in different cells of a grid of 3 x 3 that is shifted as a whole."""
    step = SIZES[thing.size] + GAP
    room = range(SIDE - (3 * step - GAP) + 1)
    left, top = _of(room, u[0]), _of(room, u[1])
    cells, chosen = list(range(9)), []
    for v in u[2 : 2 + count]:
        chosen.append(cells.pop(int(v * len(cells))))
    return tuple(_at(thing, left + step * (cell % 3), top + step * (cell // 3)) for cell in sorted(chosen))


def _two(one: Thing, two: Thing, relation: str, u: Sequence[float]) -> tuple[Placed, ...]:
    """Along the relation's axis apart; across it, centres differ by at most half as much."""
    upright, backwards = relation in ("above", "below"), relation in ("right of", "below")
    first, second = (two, one) if backwards else (one, two)
    a, b = SIZES[first.size], SIZES[second.size]
    start = _of(range(SIDE - a - GAP - b + 1), u[0])
    end = _of(range(start + a + GAP, SIDE - b + 1), u[1])
    most = (end + b / 2 - start - a / 2) / 2
    across = _of(range(SIDE - a + 1), u[2])
    beside = [v for v in range(SIDE - b + 1) if abs(v + b / 2 - across - a / 2) <= most]
    corners = [(start, across), (end, _of(beside, u[3]))]
    placed = [_at(t, *(c[::-1] if upright else c)) for t, c in zip((first, second), corners, strict=True)]
    return tuple(placed[::-1] if backwards else placed)


def _of(choices: Sequence, u: float):
    """The choice at the share u in (0, 1) of them."""
    return choices[int(u * len(choices))]


def _at(thing: Thing, x: int, y: int) -> Placed:
    return Placed(thing.shape, thing.colour, thing.size, x, y)


def _uniform(seed: int, indices: Sequence[int], name: str, count: int) -> list[list[float]]:
    noise = Noise(seed, torch.as_tensor(indices, dtype=torch.int64)).at("scenes", name)
    return noise.uniform(torch.zeros(len(indices), count, dtype=torch.float64)).tolist()


def draw(placed: Sequence[Placed]) -> np.ndarray:
    """The picture of these things, uint8 (3, 24, 24)."""
    picture = np.zeros((3, SIDE, SIDE), dtype=np.uint8)
    for one in placed:
        side = SIZES[one.size]
        ink = np.rint(255 * coverage(one.shape, side)).astype(np.uint8)
        here = picture[:, one.y : one.y + side, one.x : one.x + side]
        np.maximum(here, np.array(COLOURS[one.colour], dtype=np.uint8)[:, None, None] * ink, out=here)
    return picture


@cache
def coverage(shape: str, side: int, fine: int = 16) -> np.ndarray:
    """The share of each pixel of a (side, side) square that the shape covers, from fine^2 points in each."""
    points = (np.arange(side * fine) + 0.5) / (side * fine)
    inside = _inside(shape, points[None, :], points[:, None])
    return inside.reshape(side, fine, side, fine).mean((1, 3))


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points of the unit square, y downwards, lie in the shape that fills it."""
    if shape == "circle":
        return (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25
    if shape == "triangle":
        return np.abs(x - 0.5) <= y / 2
    if shape == "cross":
        return (np.abs(x - 0.5) <= 1 / 6) | (np.abs(y - 0.5) <= 1 / 6)
    return np.broadcast_to(True, np.broadcast_shapes(x.shape, y.shape))
