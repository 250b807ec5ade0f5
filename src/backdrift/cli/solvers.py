"""`backdrift solvers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError

STEPS = (5, 10, 20, 50)
DRAWN = 8


@dataclass(frozen=True)
class Solvers:
    """Measure every solver on data for which the exact answer is known: about half a minute.

    Order and bias are on Gaussian data, without sampling; errors are on a one-dimensional mixture of two modes, VP
    schedule, relative to returning the data's mean.
    """

    page: Path | None = None
    """Also write the table as Markdown, with a plot of error against evaluations (an .svg beside it)."""


def main(arguments: list[str]) -> None:
    options = parse(Solvers, "solvers", arguments)
    if options.page is not None and (options.page.is_dir() or options.page.suffix == ".svg"):
        raise UserError(f"{options.page} cannot be the page: name a file, such as solvers.md.")
    from backdrift.progress import counting_bar
    from backdrift.sample.audit import audit, registered

    samplers, rows = registered(), []
    with counting_bar("measuring solvers") as bar:
        for name, sampler in samplers.items():
            rows += audit({name: sampler}, steps=STEPS)
            bar(len(rows), len(samplers))
    table = [_header(), *(_cells(row) for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(table[0]))]
    for cells in table:
        say("  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]))
    if options.page is not None:
        _write(options.page, rows, table)
        say(f"page  {options.page}")


def _header() -> list[str]:
    errors, biases = ([f"{word} at {n}" for n in STEPS] for word in ("error", "bias"))
    return ["solver", "order", "measured", "strong", *errors, *biases, "largest"]


def _cells(row) -> list[str]:
    measured = "-" if row.measured is None else ", ".join(f"{value:.2f}" for value in row.measured)
    errors = ["-" if row.error is None else f"{row.error[n]:.2g}" for n in STEPS]
    biases = ["-" if row.bias is None else f"{100 * row.bias[n]:+.1f} %" for n in STEPS]
    largest = "-" if row.largest is None else f"{row.largest:.3g}"
    strong = "-" if row.strong is None else f"{row.strong:.2f}"
    return [row.name, str(row.order) if row.order else "-", measured, strong, *errors, *biases, largest]


def _write(path: Path, rows, table: list[list[str]]) -> None:
    from backdrift.files import write_text
    from backdrift.report.chart import Axis, Curve, chart, standalone

    # the plot shows the most accurate at ten evaluations; all of them would hide each other
    drawn = sorted((row for row in rows if row.error is not None), key=lambda row: row.error[10])[:DRAWN]
    curves = [Curve(row.name, STEPS, [row.error[n] for n in STEPS]) for row in drawn]
    picture = chart("Error against evaluations", curves, Axis("evaluations", True), Axis("error", True))
    figure = path.with_suffix(".svg")
    write_text(figure, standalone(picture))
    head, *body = table
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---", *["--:"] * (len(head) - 1)], *body)]
    words = (
        "# Solvers, measured\n\n"
        "Written by `backdrift solvers --page docs/solvers.md`. Every solver on data whose exact answer is known.\n\n"
        "* **order**, **measured**: of convergence, as stated, and as measured under refinement on Gaussian data from "
        "the exact marginal, on VP and EDM.\n"
        "* **strong**: the measured order of a stochastic solver's strong error, the distance between n and 2n steps "
        "along one Brownian path (VP, n from 48 to 96, where higher terms still count; its limit is 1 for all).\n"
        "* **error**: at so many evaluations, root mean square distance from the exact end of the same start on a "
        "one-dimensional mixture of two modes (VP, the whole of [0, 1]), relative to returning the data's mean. For "
        "deterministic solvers.\n"
        "* **bias**: how much too wide (+) or too narrow (-) the standard deviation of samples of N(0, 0.25) comes "
        "out; exact, without sampling.\n"
        "* **largest**: the largest coefficient of the plan at 10 evaluations.\n\n"
        f"The {DRAWN} most accurate at ten evaluations:\n\n![error against evaluations]({figure.name})\n\n"
    )
    write_text(path, words + "\n".join(lines) + "\n")
