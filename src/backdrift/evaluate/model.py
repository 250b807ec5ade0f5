"""The whole evaluation of a trained model: its samples without guidance against real pictures, and with guidance.

Samples for the distances are made without guidance, each for the label and the text of a training picture, so that they
are asked for what the data show; the label agreement is also measured under guidance, with every label equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from backdrift.evaluate.report import Evaluation, Extractor, evaluate


class Drawable(Protocol):
    """What is needed of a model: its classes, what reads texts or None, and `sample` as in `backdrift.model.Model`."""

    classes: tuple[str, ...]
    text: object | None

    def sample(self, n: int, *, label, text, guidance: float, steps: int, seed: int) -> Tensor: ...


@dataclass(frozen=True)
class ModelEvaluation:
    """The table, and how its samples were made: `plain_labels` and `plain_texts` are those asked for without guidance,
    () for none."""

    table: Evaluation
    n: int
    steps: int
    guidance: float | None
    seed: int
    plain_labels: tuple[int, ...]
    plain_texts: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Plain text, with a line on how the samples were made."""
        return [*self.table.lines(), self.made()]

    def made(self) -> str:
        """How the samples were made, in a sentence."""
        guided = "" if self.guidance is None else f"; label agreement also with guidance {self.guidance:g}"
        return f"samples: {self.n} at {self.steps} evaluations, seed {self.seed}, without guidance{guided}"

    def to_dict(self) -> dict:
        """Plain numbers and strings for JSON."""
        return {**{name: value for name, value in asdict(self).items() if name != "table"}, **self.table.to_dict()}


def evaluate_model(
    model: Drawable,
    pictures,
    *,
    n: int = 1000,
    steps: int = 10,
    guidance: float = 2.0,
    features: Sequence[Extractor],
    seed: int = 0,
) -> ModelEvaluation:
    """Draw `n` samples of `model` and compare them with the `Pictures` that it was trained on.

    The held-out part of `pictures` is the reference. A model with labels is also asked for every label under
    `guidance`, and gets two rows of label agreement. Raises `UserError` as `evaluate` does.
    """
    train, heldout = pictures.split()
    conditional = bool(model.classes) and train.labels is not None
    chosen = torch.randint(len(train), (n,), generator=torch.Generator().manual_seed(seed))
    labels = train.labels[chosen] if conditional else None
    texts = None if model.text is None or train.texts is None else [train.texts[i] for i in chosen.tolist()]
    real = {"train": train.tensor(), "heldout": heldout.tensor(), "features": features, "seed": seed}
    real |= {"train_labels": train.labels, "heldout_labels": heldout.labels}
    samples = model.sample(n, label=labels, text=texts, guidance=1.0, steps=steps, seed=seed).cpu()
    table = evaluate(samples.clamp(-1, 1), sample_labels=labels, **real)
    if not conditional:
        return ModelEvaluation(table, n, steps, None, seed, (), tuple(texts or ()))
    every = torch.arange(n) % len(model.classes)
    # other noise than above, so that the two rows are independent
    guided = model.sample(n, label=every, text=None, guidance=guidance, steps=steps, seed=seed + 1).cpu()
    row = evaluate(guided.clamp(-1, 1), sample_labels=every, **{**real, "features": ()}).row("label agreement")
    row = replace(row, name=f"label agreement, guidance {guidance:g}", note="")  # the same judge as above
    table = replace(table, rows=(*table.rows, row))
    return ModelEvaluation(table, n, steps, guidance, seed, tuple(labels.tolist()), tuple(texts or ()))
