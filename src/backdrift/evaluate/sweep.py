"""Fidelity against diversity: the figures of a model's samples at several guidance weights.

Guidance makes samples more typical of their label and less varied. One weight's figures hide the trade; a sweep over
weights shows it as a curve, and two ways of guiding are compared at equal agreement or equal diversity, not at equal
weights. Every weight gets the same noise and the same labels, those of random training pictures, so that what differs
between two rows is the weight alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from backdrift.errors import UserError
from backdrift.evaluate.model import Drawable
from backdrift.evaluate.report import Evaluation, Extractor, Row, evaluate

TRADE = ("label agreement", "FD", "precision", "recall", "coverage")
_ALSO = {"FD": "FID"}  # what it is called under the published Inception network


@dataclass(frozen=True)
class Swept:
    """weights, and for each the table of `n` samples at `steps` evaluations under `seed`."""

    weights: tuple[float, ...]
    tables: tuple[Evaluation, ...]
    n: int
    steps: int
    seed: int

    def to_dict(self) -> dict:
        """Plain numbers and strings for JSON."""
        rows = [{"weight": w, **table.to_dict()} for w, table in zip(self.weights, self.tables, strict=True)]
        return {"n": self.n, "steps": self.steps, "seed": self.seed, "weights": rows}

    def rows(self, name: str) -> list[Row]:
        """One figure of each weight, by the start of its name, such as "precision"; "FD" may be called FID."""
        return [
            next(row for row in table.rows if row.name.startswith((name, _ALSO.get(name, name))))
            for table in self.tables
        ]

    def lines(self) -> list[str]:
        """A table of plain text: the figures of `TRADE` with their intervals, and the floor as its last row."""
        columns = [self.rows(name) for name in TRADE]
        table = [("weight", *(rows[0].name for rows in columns))]
        for i, weight in enumerate(self.weights):
            shown = (rows[i] for rows in columns)
            table.append((f"{weight:g}", *(f"{r.value:.3g} [{r.low:.3g}, {r.high:.3g}]" for r in shown)))
        table.append(("floor", *(f"{rows[0].floor:.3g}" for rows in columns)))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return ["  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)) for cells in table]


def sweep(
    at: Callable[[float], Drawable],
    pictures,
    weights: Sequence[float],
    *,
    n: int = 500,
    steps: int = 10,
    features: Extractor,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Swept:
    """The figures of n samples at each of the weights.

    at: the model steered with a weight, such as `lambda w: model.around(ClassifierFree(model.denoiser, w))`.
    pictures: the `Pictures` that it was trained on, with labels. on_progress: called with (weights done, of how many).

    Raises `UserError` for pictures without labels, no weights, and as `evaluate` does.
    """
    if not weights:
        raise UserError("A sweep needs at least one weight, such as 1 2 3.")
    train, heldout = pictures.split()
    if train.labels is None:
        raise UserError("Guidance follows labels, and the pictures of this run have none.")
    generator = torch.Generator().manual_seed(seed)
    labels = train.labels[torch.randint(len(train), (n,), generator=generator)]
    tables = []
    for done, weight in enumerate(weights):
        samples = at(weight).sample(n, label=labels, guidance=1.0, steps=steps, seed=seed).cpu().clamp(-1, 1)
        tables.append(
            evaluate(
                samples,
                train.tensor(),
                heldout.tensor(),
                features=(features,),
                train_labels=train.labels,
                heldout_labels=heldout.labels,
                sample_labels=labels,
                seed=seed,
            )
        )
        if on_progress:
            on_progress(done + 1, len(weights))
    return Swept(tuple(weights), tuple(tables), n, steps, seed)
