"""One table that says how good a set of samples is, and how good it could be.

Every figure stands beside its floor: the same figure, computed in the same way against the same reference, for as
many real pictures as there are samples. A figure at its floor cannot be told from real pictures by that figure.

* `evaluate`: the reference is the held-out part, which the model never saw; the floor puts random sets of training
  pictures in the samples' place. A model that repeats its training pictures gets the floor and no better, and
  the memorisation check tells it from a model that is good.
* `evaluate_two`: real pictures without such a part are split at random, some for the samples' place and the rest
  as the reference; figure and floor are means over several splits.

Intervals are delete-a-group jackknives over the samples with the reference held fixed (`intervals` says why not the
bootstrap): they answer how far the figure would move with another seed, which is what the distance to the floor
is to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.evaluate.agreement import Agreement, label_agreement
from backdrift.evaluate.distances import frechet, kernel_distance, sliced_wasserstein
from backdrift.evaluate.exported import ExportedFeatures
from backdrift.evaluate.features import extract
from backdrift.evaluate.intervals import jackknife
from backdrift.evaluate.manifold import density_coverage, precision_recall
from backdrift.evaluate.memorisation import Memorisation, memorisation

Extractor = Callable[[Tensor], Tensor]

_SMALLEST = 20  # pictures in a set: ten groups of two, and more than k neighbours when one group is out


@dataclass(frozen=True)
class Row:
    """One figure: `value` with its 95 % interval, and its `floor`.

    `n` samples were compared with `reference` real pictures; `better` is "lower" or "higher"; `note` says what the
    figure is relative to, where that is not the reference.
    """

    name: str
    value: float
    low: float
    high: float
    floor: float
    n: int
    reference: int
    better: str
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """The table, the memorisation check (None without training pictures) and how the floor was made."""

    rows: tuple[Row, ...]
    floor: str
    memorisation: Memorisation | None = None

    def row(self, name: str) -> Row:
        """The row called `name`; `UserError` with the known names otherwise."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(f"There is no figure {name!r}; there are {', '.join(row.name for row in self.rows)}.")

    def to_dict(self) -> dict:
        """Plain numbers and strings for JSON; what is not finite becomes None."""
        return _jsonable(asdict(self))

    def lines(self) -> list[str]:
        """The table as plain text, the verdict on memorisation first."""
        table = [("", "value", "95 % interval", "floor", "n", "real", "better")]
        for row in self.rows:
            interval = f"[{_number(row.low)}, {_number(row.high)}]"
            table.append(
                (row.name, _number(row.value), interval, _number(row.floor), str(row.n), str(row.reference), row.better)
            )
        widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
        text = [self.memorisation.line()] if self.memorisation else []
        for cells in table:
            padded = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
            text.append("  ".join([cells[0].ljust(widths[0]), *padded]))
        return [*text, f"floor: {self.floor}", *(f"{row.name}: {row.note}" for row in self.rows if row.note)]


@dataclass(frozen=True)
class _Split:
    """Indices into a pool of real pictures: what samples are compared with, and what takes their place."""

    reference: Tensor
    fresh: tuple[Tensor, ...]


def evaluate(
    samples: Tensor,
    train: Tensor,
    heldout: Tensor,
    *,
    features: Sequence[Extractor],
    train_labels: Tensor | None = None,
    heldout_labels: Tensor | None = None,
    sample_labels: Tensor | None = None,
    splits: int = 5,
    seed: int = 0,
) -> Evaluation:
    """Compare `samples` (n, C, H, W) of a model with `heldout` (m, C, H, W); it was trained on `train` (N, C, H, W).

    Each extractor in `features` gives seven rows; the floor is the mean over `splits` random sets of training
    pictures. All are in [-1, 1]. The first min(n, N) samples are used, so that figure and floor have the same n.
    With `sample_labels`, the labels that were asked for, there is a row for label agreement, which needs the other
    two as well and whose floor is the judge's held-out accuracy.

    Raises `UserError` when shapes differ, a set has fewer than 20 pictures, values are not finite, or labels are
    missing.
    """
    _check({"samples": samples, "training pictures": train, "held-out pictures": heldout})
    agreement = []
    if sample_labels is not None:
        if train_labels is None or heldout_labels is None:
            raise UserError("Label agreement needs the labels of the training and of the held-out pictures too.")
        agreement = [
            _agreement_row(label_agreement(samples, sample_labels, train, train_labels, heldout, heldout_labels))
        ]
    n = min(len(samples), len(train))
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(len(train), generator=generator)[:n] for _ in range(splits)]
    # only the drawn training pictures go through the extractor; the held-out ones come after them
    used, position = torch.cat(drawn).unique(return_inverse=True)
    pool = torch.cat([train[used], heldout])
    split = _Split(torch.arange(len(used), len(pool)), position.split(n))
    rows = [row for extractor in features for row in _compare(samples[:n], pool, [split], extractor, seed)]
    return Evaluation(
        (*rows, *agreement),
        f"{splits} random sets of {n} training pictures against the {len(heldout)} held-out ones",
        memorisation(samples, train, heldout, seed=seed),
    )


def evaluate_two(
    samples: Tensor, real: Tensor, *, features: Sequence[Extractor], splits: int = 5, seed: int = 0
) -> Evaluation:
    """Compare `samples` (n, C, H, W) with `real` (N, C, H, W), any two sets of pictures in [-1, 1].

    Each of `splits` random splits of `real` sets n' = min(n, 2 N / 3) pictures aside for the floor; the other N - n'
    are the reference for these and for the first n' samples. Raises `UserError` as `evaluate` does.
    """
    _check({"samples": samples, "real pictures": real})
    n = min(len(samples), 2 * len(real) // 3)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(real), generator=generator) for _ in range(splits)]
    parts = [_Split(order[n:], (order[:n],)) for order in orders]
    rows = [row for extractor in features for row in _compare(samples[:n], real, parts, extractor, seed)]
    text = f"{n} real pictures against the other {len(real) - n}, mean over {splits} random splits"
    return Evaluation(tuple(rows), text)


_FIGURES = (  # name, better, smallest and largest possible value
    ("{frechet}", "lower", 0.0, math.inf),
    ("kernel distance ({name})", "lower", -math.inf, math.inf),
    ("sliced Wasserstein-2 ({name})", "lower", 0.0, math.inf),
    ("precision ({name})", "higher", 0.0, 1.0),
    ("recall ({name})", "higher", 0.0, 1.0),
    ("density ({name})", "higher", 0.0, math.inf),
    ("coverage ({name})", "higher", 0.0, 1.0),
)


def _figures(samples: Tensor, real: Tensor, seed: int) -> Tensor:
    """The seven figures of `_FIGURES` for features (n, F) and (m, F), in float64."""
    values = (
        frechet(samples, real),
        kernel_distance(samples, real),
        sliced_wasserstein(samples, real, seed=seed),
        *precision_recall(real, samples),
        *density_coverage(real, samples),
    )
    return torch.tensor(values, dtype=torch.float64)


def _compare(samples: Tensor, pool: Tensor, splits: list[_Split], extractor: Extractor, seed: int) -> list[Row]:
    ours, real = extract(extractor, samples), extract(extractor, pool)

    def figure(kept: Tensor) -> Tensor:
        return torch.stack([_figures(ours[kept], real[s.reference], seed) for s in splits]).mean(0)

    value = figure(torch.arange(len(ours)))
    half = jackknife(figure, len(ours), seed)
    floor = torch.stack([_figures(real[f], real[s.reference], seed) for s in splits for f in s.fresh]).mean(0)
    names = {"name": extractor.name, "frechet": frechet_name(extractor)}
    return [
        Row(
            name.format(**names),
            float(value[i]),
            max(smallest, float(value[i] - half[i])),
            min(largest, float(value[i] + half[i])),
            float(floor[i]),
            len(ours),
            len(splits[0].reference),
            better,
        )
        for i, (name, better, smallest, largest) in enumerate(_FIGURES)
    ]


def frechet_name(extractor: Extractor) -> str:
    """What a Fréchet distance is called: "FID" under the published Inception network, else "FD (extractor)"."""
    if isinstance(extractor, ExportedFeatures) and extractor.inception:
        return "FID"
    return f"FD ({extractor.name})"


def _agreement_row(agreement: Agreement) -> Row:
    low, high = agreement.heldout.interval
    return Row(
        "label agreement",
        agreement.samples.value,
        *agreement.samples.interval,
        agreement.heldout.value,
        agreement.samples.n,
        agreement.fitted,
        "higher",
        f"the judge was fitted on {agreement.fitted} training pictures; its floor is its accuracy on "
        f"{agreement.heldout.n} held-out ones, {agreement.heldout.value:.3f} [{low:.3f}, {high:.3f}]",
    )


def _check(sets: dict[str, Tensor]) -> None:
    shapes = {name: tuple(pictures.shape[1:]) for name, pictures in sets.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 3 for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(f"All sets must hold pictures (channels, height, width) of one size, not {listed}.")
    for name, pictures in sets.items():
        if len(pictures) < _SMALLEST:
            raise UserError(f"There are only {len(pictures)} {name}; give at least {_SMALLEST} (hundreds tell more).")
        if not all(part.isfinite().all() for part in pictures.split(4096)):
            raise UserError(f"The {name} hold values that are not finite; look for a diverged model or a broken file.")


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.3g}"


def _jsonable(value: object) -> object:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
