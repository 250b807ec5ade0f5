"""`backdrift info`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say


@dataclass(frozen=True)
class Info:
    """What a run holds: its data, network, training, figures, and the command that repeats it."""

    run: Positional[Path]
    """The run folder."""


def main(arguments: list[str]) -> None:
    options = parse(Info, "info", arguments)
    from backdrift.report.facts import command, facts, figures
    from backdrift.run import Run

    run = Run(options.run)
    rows = [*facts(run), *figures(run), ("command", command(run))]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")
