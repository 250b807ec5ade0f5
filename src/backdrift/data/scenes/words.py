"""What a scene can show, and how a caption says it.

A caption is one of three sentences:

    a [size] colour shape                                      a red square, a large blue circle
    count colour shapes                                        three green triangles
    a [size] colour shape RELATION a [size] colour shape       a red square left of a small blue circle

A size that is left unsaid may be either. `Meaning.read` is the exact inverse of `Meaning.text`.

**Compositions.** Whether a model has understood a caption or remembers it shows on combinations that it never saw.
`HELD_OUT` names some for each kind of composition: a shape with a colour, a size with a shape, a size with a colour,
a number with a shape, and two shapes in a relation (either way round: "A left of B" is "B right of A"). No training
scene contains any of them, said or unsaid, while each of their parts is in many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

from backdrift.errors import UserError

SHAPES = ("square", "circle", "triangle", "cross")
COLOURS = {  # red, green, blue
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "purple": (1, 0, 1),
    "cyan": (0, 1, 1),
}
SIZES = {"small": 6, "large": 10}  # side in pixels
COUNTS = {2: "two", 3: "three", 4: "four"}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}


@dataclass(frozen=True)
class Thing:
    """A shape with a colour and a size; size None is unsaid."""

    shape: str
    colour: str
    size: str | None = None

    @property
    def text(self) -> str:
        return " ".join(filter(None, (self.size, self.colour, self.shape)))


@dataclass(frozen=True)
class Meaning:
    """What a caption says: `count` of `thing`, or one `thing` in `relation` to one `other`."""

    thing: Thing
    count: int = 1
    relation: str | None = None
    other: Thing | None = None

    @property
    def text(self) -> str:
        """The caption."""
        if self.count > 1:
            return f"{COUNTS[self.count]} {self.thing.colour} {PLURALS[self.thing.shape]}"
        first = f"a {self.thing.text}"
        return first if self.other is None else f"{first} {self.relation} a {self.other.text}"

    @classmethod
    def read(cls, text: str) -> Meaning:
        """The meaning of a caption. Raises `UserError` for a text that is none."""
        found = _captions().get(" ".join(text.lower().split()))
        if found is None:
            raise UserError(
                f"{text!r} is no caption of a scene; write one like 'a red square left of a small blue circle', "
                "'a large green cross' or 'three cyan triangles'."
            )
        return found

    @property
    def things(self) -> tuple[Thing, ...]:
        return (self.thing,) if self.other is None else (self.thing, self.other)

    def unsized(self, first: bool, second: bool) -> Meaning:
        """The same with the size of the first or the second thing unsaid."""
        things = [
            Thing(thing.shape, thing.colour, None if unsaid else thing.size)
            for thing, unsaid in zip(self.things, (first, second), strict=False)
        ]
        return Meaning(things[0], self.count, self.relation, things[1] if self.other else None)


@dataclass(frozen=True)
class HeldOut:
    """The combinations that training never shows, by kind of composition."""

    shape_colour: tuple[tuple[str, str], ...] = (
        ("square", "yellow"),
        ("circle", "red"),
        ("triangle", "blue"),
        ("cross", "green"),
    )
    size_shape: tuple[tuple[str, str], ...] = (("large", "triangle"),)
    size_colour: tuple[tuple[str, str], ...] = (("large", "cyan"),)
    count_shape: tuple[tuple[int, str], ...] = ((2, "square"), (3, "cross"), (4, "circle"))
    relation: tuple[tuple[str, str, str], ...] = (("circle", "left of", "square"), ("triangle", "above", "cross"))

    def kinds(self, meaning: Meaning) -> frozenset[str]:
        """The kinds of composition in which this meaning, all sizes said, is held out."""
        found = {
            name
            for thing in meaning.things
            for name, pair in (
                ("shape_colour", (thing.shape, thing.colour)),
                ("size_shape", (thing.size, thing.shape)),
                ("size_colour", (thing.size, thing.colour)),
                ("count_shape", (meaning.count, thing.shape)),
            )
            if pair in getattr(self, name)
        }
        if meaning.other is not None:
            one, two = meaning.thing.shape, meaning.other.shape
            if {(one, meaning.relation, two), (two, OPPOSITE[meaning.relation], one)} & set(self.relation):
                found.add("relation")
        return frozenset(found)


HELD_OUT = HeldOut()


@cache
def everything() -> tuple[tuple[Meaning, ...], tuple[Meaning, ...], tuple[Meaning, ...]]:
    """All meanings, with every size said: of one thing, of several alike, of two things. The order never changes.

    Several things are small, so that four find room; two things differ in colour, so that they stay two.
    """
    things = [Thing(*one) for one in product(SHAPES, COLOURS, SIZES)]
    several = [Meaning(thing, count) for thing in things if thing.size == "small" for count in COUNTS]
    two = [Meaning(a, 1, r, b) for a, r, b in product(things, OPPOSITE, things) if a.colour != b.colour]
    return tuple(Meaning(thing) for thing in things), tuple(several), tuple(two)


@cache
def trained() -> tuple[tuple[Meaning, ...], ...]:
    """Those of `everything` that contain nothing of `HELD_OUT`."""
    return tuple(tuple(m for m in group if not HELD_OUT.kinds(m)) for group in everything())


@cache
def held_out() -> dict[str, tuple[Meaning, ...]]:
    """Meanings never seen in training by the one kind of composition that holds them out, all sizes said.

    The keys are the fields of `HeldOut` with the number of things in front: "one ", "several " or "two ".
    """
    found: dict[str, list[Meaning]] = {}
    for number, group in zip(("one", "several", "two"), everything(), strict=True):
        for meaning in group:
            kinds = HELD_OUT.kinds(meaning)
            if len(kinds) == 1:
                found.setdefault(f"{number} {next(iter(kinds))}", []).append(meaning)
    return {name: tuple(meanings) for name, meanings in found.items()}


@cache
def _captions() -> dict[str, Meaning]:
    unsaid = [m.unsized(*how) for group in everything() for m in group for how in product((False, True), repeat=2)]
    return {meaning.text: meaning for meaning in unsaid}
