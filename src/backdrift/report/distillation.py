"""A teacher and its student side by side: figures at each number of evaluations, and samples from the same noises."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backdrift import data
from backdrift.data import grid_png
from backdrift.evaluate.distances import frechet
from backdrift.evaluate.features import PixelPCA, extract
from backdrift.files import write_json, write_text
from backdrift.model import Model
from backdrift.report import page
from backdrift.run import Run

REFERENCE = 35  # evaluations of the teacher that a student is measured against
SHOWN = 10


@dataclass(frozen=True)
class Line:
    """One sampler. fd: the Fréchet distance to held-out pictures; ms: per picture."""

    who: str
    evaluations: int
    fd: float
    ms: float


@dataclass(frozen=True)
class Comparison:
    """n: samples behind each line. floor: the Fréchet distance of training pictures in the samples' place."""

    lines_: tuple[Line, ...]
    n: int
    real: int
    floor: float

    def lines(self) -> list[str]:
        """For the terminal."""
        head = f"{'':<28}{'evaluations':>12}{'FD':>9}{'of teacher':>12}{'ms each':>9}"
        best = self.lines_[0].fd
        rows = [
            f"{row.who:<28}{row.evaluations:>12}{row.fd:>9.3f}{row.fd / best:>12.2f}{row.ms:>9.2f}"
            for row in self.lines_
        ]
        return [
            head,
            *rows,
            f"FD in pixel PCA; {self.n} samples, {self.real} held-out pictures, floor {self.floor:.3f}",
        ]


def compare(teacher: Model, student: Model, steps: int, n: int, guidance: float = 1.0) -> Comparison:
    """The teacher at `REFERENCE` and at few evaluations (tuned plans where it has them), and the student."""
    pictures = data.load(Run(student.folder).config()["data"]["source"])
    train, held = pictures.split()
    real, known = held.tensor(), train.tensor()
    features = PixelPCA.fit(known, min(24, known[0].numel(), len(known) - 1))
    target = extract(features, real)
    labels = None if train.labels is None else train.labels[torch.arange(n) % len(train)]

    def line(model: Model, who: str, count: int, weight: float) -> Line:
        began = time.perf_counter()
        made = model.sample(n, label=labels, steps=count, guidance=weight, seed=4242)
        taken = (time.perf_counter() - began) / n * 1000
        return Line(who, count, frechet(extract(features, made.cpu()), target), taken)

    weight = guidance if labels is not None else 1.0
    rows = [line(teacher, "teacher", REFERENCE, weight)]
    for count in (1, 2, 4, 5, 10):
        tuned = " (tuned plan)" if teacher.tuned_plan(count, weight) else ""
        rows.append(line(teacher, f"teacher{tuned}", count, weight))
    rows += [line(student, "student", count, 1.0) for count in (1, 2, 4) if student.tuned_plan(count)]
    take = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:n]
    return Comparison(tuple(rows), n, len(real), frechet(extract(features, known[take]), target))


def write_distillation_report(path: Path, teacher: Model, student: Model, found: Comparison) -> Path:
    """Write the page and, beside it, its figures as JSON; returns its path."""
    table = [(row.who, str(row.evaluations), f"{row.fd:.3f}", f"{row.ms:.2f}") for row in found.lines_]
    labels = [i % len(teacher.classes) for i in range(SHOWN)] if teacher.classes else None
    rows: list[Tensor] = [teacher.sample(SHOWN, label=labels, steps=REFERENCE)]
    named = [f"the teacher at {REFERENCE}"]
    for count in (2, 4):
        rows.append(teacher.sample(SHOWN, label=labels, steps=count))
        named.append(f"at {count}")
    for count in (1, 2, 4):
        if student.tuned_plan(count):
            rows.append(student.sample(SHOWN, label=labels, steps=count))
            named.append(f"the student at {count}")
    parts = [
        page.table(("sampler", "evaluations", "FD", "ms per picture"), table),
        page.text(found.lines()[-1] + ".", "note"),
        page.text(
            "The losses of consistency training are no measure of its progress; judge by the figures above.", "note"
        ),
        page.heading("The same noises"),
        page.picture(grid_png(torch.cat(rows).cpu(), columns=SHOWN), "from above: " + ", ".join(named)),
    ]
    write_text(path, page.Page("backdrift: a distilled model", parts).html())
    write_json(path.with_suffix(".json"), {"n": found.n, "floor": found.floor, "rows": [vars(r) for r in found.lines_]})
    return path
