"""Does a model draw what a caption says, on combinations that it never saw? Counted on the scenes.

The captions are the scenes' held-out ones, by kind of composition (`data.scenes.held_out`); a picture is right where
the scenes' checker reads from its pixels exactly what the caption says: as many things, each with its shape, colour and
size, in the relation. For comparison the same is counted on captions that training had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from backdrift.data.scenes import Meaning, held_out, right, trained
from backdrift.evaluate.intervals import wilson
from backdrift.noise import Noise
from backdrift.sample import Sampler


@dataclass(frozen=True)
class Count:
    """Of `n` pictures for captions of one `kind`, `right` show what theirs says; the interval is Wilson's, of 95 %."""

    kind: str
    right: int
    n: int

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.kind:24} {self.share:.3f} [{low:.3f}, {high:.3f}]  n = {self.n}"


@dataclass(frozen=True)
class Composition:
    """The counts by kind, and how the pictures were made."""

    counts: tuple[Count, ...]
    guidance: float
    steps: int
    solver: str
    seed: int

    def over(self, name: str, start: str) -> Count:
        """All counts of kinds that start so as one."""
        chosen = [count for count in self.counts if count.kind.startswith(start)]
        return Count(name, sum(count.right for count in chosen), sum(count.n for count in chosen))

    @property
    def unseen_one(self) -> Count:
        """Over the held-out kinds of a single thing."""
        return self.over("one thing, unseen", "one ")

    @property
    def unseen_two(self) -> Count:
        """Over the held-out kinds of two things."""
        return self.over("two things, unseen", "two ")

    def lines(self) -> list[str]:
        """Plain text."""
        made = f"guidance {self.guidance:g}, {self.steps} evaluations of {self.solver}, seed {self.seed}"
        return [*map(str, (*self.counts, self.unseen_one, self.unseen_two)), made]

    def to_dict(self) -> dict:
        """Plain numbers and strings for JSON."""
        return asdict(self)


def composition(
    model, *, n: int = 100, guidance: float = 2.0, steps: int = 20, solver: Sampler | None = None, seed: int = 0
) -> Composition:
    """`n` pictures of `model`, trained with text on scenes, for each kind of held-out and of trained captions.

    solver: None is the model's default. Every caption says all sizes that it can.

    Raises `UserError` for a model without text.
    """
    known = dict(zip(("seen: one", "seen: several", "seen: two"), trained(), strict=True))
    counts, first = [], 0
    for kind, meanings in {**held_out(), **known}.items():
        index = list(range(first, first + n))  # no two kinds share their noise
        captions = [meaning.text for meaning in draw(meanings, seed, index)]
        made = model.sample(index=index, text=captions, guidance=guidance, steps=steps, solver=solver, seed=seed)
        counts.append(Count(kind, sum(right(captions, made)), n))
        first += n
    name = "the default" if solver is None else str(solver)
    return Composition(tuple(counts), guidance, steps, name, seed)


def draw(meanings: Sequence[Meaning], seed: int, index: Sequence[int]) -> list[Meaning]:
    """A meaning for each number, keyed by it; all of them equally often as far as their number allows."""
    order = Noise.of(seed, len(meanings)).at("captions").uniform(torch.zeros(len(meanings), dtype=torch.float64))
    order = order.argsort().tolist()
    return [meanings[order[i % len(order)]] for i in index]
