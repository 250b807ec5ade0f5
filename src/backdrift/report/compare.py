"""Runs side by side: what differs, what each makes of the same noise, figures with intervals, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backdrift.config import to_config
from backdrift.data import grid_png
from backdrift.files import write_text
from backdrift.model import Model
from backdrift.report import page
from backdrift.report.chart import Axis, Curve, chart
from backdrift.report.facts import evaluation, facts, last
from backdrift.run import Run
from backdrift.train.identity import flat
from backdrift.train.metrics import ANGLES

COLUMNS = 8  # pictures beside each other in a grid
CLASSES = 10  # rows of a grid of a model with labels


def write_comparison(
    path: Path, models: Sequence[Model], *, n: int = 64, steps: int = 10, guidance: float = 2.0, seed: int = 0
) -> Path:
    """Write the page of these models, each of which has its run; returns its path.

    n: samples of each without labels; models with labels get a row of 8 per label, for up to 10, under `guidance`.
    steps: calls of the network per sample. Sample i has the same noise in every model whose pictures have one shape.
    """
    runs = [Run(model.folder) for model in models]
    names = _names([run.folder for run in runs])
    parts = [
        page.facts([("compared", ", ".join(names)), ("samples", f"seed {seed}, {steps} evaluations each")]),
        page.heading("The runs, and the options in which they differ"),
        page.table(("", *names), _choices(runs)),
        page.heading("From the same noise"),
        *_samples(models, names, n, steps, guidance, seed),
        *_evaluations(runs, names),
        page.heading("Training"),
        *_curves(runs, names),
    ]
    write_text(path, page.Page(f"backdrift: {' and '.join(names)}", parts).html())
    return path


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or their paths where two have one name."""
    short = [folder.absolute().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _choices(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """The facts of each run, and every option in which they differ."""
    known = [dict(facts(run)) for run in runs]
    rows = [
        (name, *(each.get(name, "") for each in known)) for name in dict.fromkeys(n for each in known for n in each)
    ]
    # through the options' class, so that what an older release did not know has its default
    options = [flat(to_config(run.options())) for run in runs]
    for name in dict.fromkeys(n for each in options for n in each):
        values = [str(each.get(name, "")) for each in options]
        if len(set(values)) > 1:
            rows.append((name.removesuffix(".kind"), *values))
    return [row for row in rows if row[0] != "run"]


def _samples(models: Sequence[Model], names, n: int, steps: int, guidance: float, seed: int) -> list[str]:
    figures = []
    for model, name in zip(models, names, strict=True):
        how = {"steps": steps, "seed": seed}
        if model.classes:
            label = [k for k in range(min(len(model.classes), CLASSES)) for _ in range(COLUMNS)]
            weight = 1.0 if model.unguided else guidance
            made, words = model.sample(len(label), label=label, guidance=weight, **how), f", guidance {weight:g}"
        else:
            made, words = model.sample(n, **how), ""
        figures.append(page.picture(grid_png(made.cpu(), COLUMNS), name + words))
    shapes = {model.event_shape for model in models}
    note = (
        "Every grid starts from the same noise, place by place."
        if len(shapes) == 1
        else ("The pictures have several shapes, so that the grids do not share their noise.")
    )
    return [page.row(figures), page.text(note, "note")]


def _evaluations(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    found = [evaluation(run) for run in runs]
    if not any(found):
        return [page.text("None of the runs was evaluated; backdrift evaluate RUN gives figures.", "note")]
    by_name = [{row["name"]: row for row in each["rows"]} if each else {} for each in found]
    rows = [
        (name, *(_figure(each.get(name)) for each in by_name), next(e[name]["better"] for e in by_name if name in e))
        for name in dict.fromkeys(name for each in by_name for name in each)
    ]
    made = "; ".join(
        f"{name}: {each['n']} samples at {each['steps']} evaluations, seed {each['seed']}" if each else f"{name}: none"
        for name, each in zip(names, found, strict=True)
    )
    notes = [f"With the 95 % interval over samples and, after the bar, the floor: what real pictures get. {made}."]
    if len({run.config()["data"]["fingerprint"] for run in runs}) > 1:
        notes.append("The runs have different data, so that their figures answer different questions.")
    return [
        page.heading("Figures"),
        page.table(("figure", *names, "better"), rows),
        *(page.text(note, "note") for note in notes),
    ]


def _figure(row: dict | None) -> str:
    if row is None:
        return ""
    value, low, high, floor = (_number(row[name]) for name in ("value", "low", "high", "floor"))
    return f"{value} [{low}, {high}] | {floor}"


def _curves(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    records = [run.metrics() for run in runs]

    def over(name: str) -> list[Curve]:
        chosen = [[record for record in each if record.get(name) is not None] for each in records]
        return [
            Curve(words, [r["pictures"] for r in each], [r[name] for r in each])
            for words, each in zip(names, chosen, strict=True)
        ]

    def angles(name: str) -> list[Curve]:
        ends = [last(each, name) or [None] * len(ANGLES) for each in records]
        return [Curve(words, ANGLES, end) for words, end in zip(names, ends, strict=True)]

    seen, loss, degrees = Axis("pictures seen"), Axis("loss", log=True), Axis("noise angle (degrees)")
    charts = [
        chart("Training loss", over("loss"), seen, loss),
        chart("Held-out loss", over("validation_loss"), seen, loss),
        chart("Held-out loss by noise angle, at the end", angles("validation_by_noise"), degrees, loss),
        chart("Speed", over("pictures_per_second"), seen, Axis("pictures per second")),
    ]
    note = "Losses can be compared where the runs predict the same target of the same data with the same weight."
    return [page.row([c for c in charts if c]), page.text(note, "note")]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
