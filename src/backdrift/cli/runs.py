"""`backdrift runs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say

_WIDE = 240  # columns where the output is no terminal


@dataclass(frozen=True)
class Runs:
    """Every run in a folder and the folders below, with its figures; broken ones are named as such."""

    folder: Positional[Path] = Path("runs")
    """Where to look."""


def main(arguments: list[str]) -> None:
    options = parse(Runs, "runs", arguments)
    from rich.console import Console
    from rich.table import Table

    from backdrift.report.summary import find, summary

    runs = [summary(folder) for folder in find(options.folder)]
    if not runs:
        say(f"There are no runs in {options.folder}.")
        return
    names = {each.distance.name for each in runs if each.distance}
    rows = [_cells(each, options.folder, len(names) > 1) for each in runs]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        if name == "run" or any(row[name] for row in rows):  # a column that nobody has is left out
            table.add_column(name, justify="left" if name in ("run", "data", "net", "changed") else "right")
    for row in rows:
        table.add_row(*(row[column.header] for column in table.columns))
    console = Console(markup=False, highlight=False)
    console = console if console.is_terminal else Console(markup=False, highlight=False, width=_WIDE)
    console.print(table)
    measured = sorted({figure.name for each in runs for figure in (each.distance, each.recall) if figure})
    if measured:
        say(f"In brackets: the floor, what real pictures get. {'; '.join(measured)}.")
    for each in runs:
        if each.problem:
            say(f"{_name(each, options.folder)}: {each.problem}")


def _cells(each, folder: Path, named: bool) -> dict[str, str]:
    """The columns of a run, by their headings; named: say of each distance what it was measured by."""
    done = "" if each.steps is None else f"{each.step or 0}/{each.steps}"
    return {
        "run": _name(each, folder),
        "data": each.data or ("BROKEN" if each.problem else ""),
        "net": each.network or "",
        "weights": _short(each.weights),
        "steps": done,
        "loss": _number(each.loss, 4),
        "held out": _number(each.held_out, 4),
        "FD": _with_floor(each.distance) + (f" {each.distance.name}" if named and each.distance else ""),
        "recall": _with_floor(each.recall),
        "bits/dim": ", ".join(f"{value:.3f} {method}" for method, value in each.bits),
        "pictures/s": _number(each.speed, 4),
        "MB": f"{each.size / 1e6:.1f}",
        "changed": each.changed.strftime("%Y-%m-%d %H:%M") if each.changed else "",
    }


def _name(each, folder: Path) -> str:
    inside = each.run.folder.relative_to(folder)
    return str(inside) if inside.parts else str(folder)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _with_floor(figure) -> str:
    return "" if figure is None else f"{_number(figure.value)} ({_number(figure.floor)})"


def _short(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
