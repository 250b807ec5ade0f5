"""`backdrift demo`: the main job, end to end, on real pictures that come with scikit-learn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from backdrift.cli.parse import parse, say


@dataclass(frozen=True)
class Demo:
    """Train on 1,797 handwritten digits, sample, evaluate, and write a report: about two minutes on two cores."""

    run: Path = Path("runs/digits")
    """The folder of the run; a run that is there already is continued or reused."""
    device: str | None = None


def main(arguments: list[str]) -> None:
    options = parse(Demo, "demo", arguments)
    from backdrift.cli import evaluate, sample, train

    began = time.perf_counter()
    run = str(options.run)
    device = [] if options.device is None else ["--device", options.device]
    train.main(["--data", "digits", "--run", run, *device])
    labels = [str(digit) for digit in range(10)]
    sample.main([run, "--n", "100", "--label", *labels, "--guidance", "2", "--steps", "10", *device])
    evaluate.main([run, *device])
    say(f"done in {time.perf_counter() - began:.0f} s; open the report in a browser")
