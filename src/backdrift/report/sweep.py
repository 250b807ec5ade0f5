"""The page of a sweep over guidance weights: the same noises under each weight, and fidelity against diversity."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from backdrift.data import grid_png, save_grid
from backdrift.evaluate.sweep import Swept
from backdrift.files import write_json, write_text
from backdrift.report import page
from backdrift.report.chart import Axis, Curve, chart, standalone


def write_sweep(path: Path, found: Swept, shown: Tensor, columns: int, title: str, command: str) -> list[Path]:
    """Write the page `path`, and beside it grid (.png), curve (.svg) and figures (.json); returns the four paths.

    shown: pictures (weights x columns, C, H, W), a row for each weight, the same noise and label down a column.
    """
    charts, (grid, curve, figures) = _charts(found), (path.with_suffix(end) for end in (".png", ".svg", ".json"))
    save_grid(shown, grid, columns=columns)
    write_text(curve, standalone(charts[0]))
    write_json(figures, {"command": command, **found.to_dict()})
    listed = ", ".join(f"{w:g}" for w in found.weights)
    note = (
        f"{found.n} samples for each weight at {found.steps} evaluations, seed {found.seed}, with the same noise and "
        f"labels. Floor: {found.tables[0].floor}. Precision: how many samples lie among the real pictures; recall: how "
        "many real pictures lie among the samples."
    )
    parts = [
        page.picture(grid_png(shown, columns=columns), f"weights {listed} from above; a noise and label per column"),
        page.heading("Fidelity against diversity"),
        page.row(charts),
        page.code("\n".join(found.lines())),
        page.text(note, "note"),
        page.heading("The command that repeats this sweep"),
        page.code(command),
    ]
    write_text(path, page.Page(title, parts).html())
    return [path, grid, curve, figures]


def _charts(found: Swept) -> list[str]:
    (precision, floor), (recall, floor_recall) = (_values(found, name) for name in ("precision", "recall"))
    points = [Curve(f"w {w:g}", [r], [p]) for w, r, p in zip(found.weights, recall, precision, strict=True)]
    curves = [Curve("sweep", recall, precision), *points, Curve("real pictures", [floor_recall], [floor])]

    def against_weight(name: str, words: str, log: bool = False) -> str:
        values, real = _values(found, name)
        floor = Curve("floor", [min(found.weights), max(found.weights)], [real] * 2, dashed=True)
        return chart(words, [Curve(words, found.weights, values), floor], Axis("guidance weight"), Axis(words, log))

    return [
        chart("Precision against recall", curves, Axis("recall"), Axis("precision")),
        against_weight("FD", "Fréchet distance", log=True),
        against_weight("label agreement", "label agreement"),
    ]


def _values(found: Swept, name: str) -> tuple[list[float], float]:
    """A figure at each weight, and its floor."""
    rows = found.rows(name)
    return [row.value for row in rows], rows[0].floor
