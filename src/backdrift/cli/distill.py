"""`backdrift distill`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import notice, parse, say
from backdrift.errors import UserError


@dataclass(frozen=True)
class Distill:
    """Make of a run a student that samples in one, two or four evaluations, and compare the two.

    The student is a run like any other; the same command continues one that was stopped.
    """

    run: Positional[Path]
    """The teacher's run folder, or one that diffusers wrote (with --data)."""
    data: str | None = None
    """The pictures, as for backdrift train; by default those of the run."""
    steps: int = 2
    """Evaluations of the student: 1, 2 or 4."""
    method: str = "paths"
    """paths (recommended), maps, easy, discrete, continuous, progressive, rectified, align, trajectory, matching or
    adversarial; or from data, starting at the teacher: mean-flow, alpha-flow, shortcut, consistency, easy-consistency,
    continuous-consistency (docs/few-steps.md)."""
    guidance: float = 1.0
    """Of the teacher, for runs with labels; the student then needs one pass per call."""
    guidance_to: float | None = None
    """With it, the student learns every guidance from --guidance to this one, and is asked for one when it samples."""
    out: Path | None = None
    """The student's folder; by default the teacher's with -distilled."""
    updates: int = 2000
    """Steps of the optimiser, over all stages."""
    batch: int = 128
    lr: float | None = None
    """By default that of the method."""
    n: int = 1000
    """Samples behind each figure of the comparison; 0 leaves it out."""
    device: str | None = None


def main(arguments: list[str]) -> None:
    from backdrift.cli.choices import few_step
    from backdrift.cli.train import Train, read
    from backdrift.distillation import Effort, distill
    from backdrift.model import load
    from backdrift.progress import training_bar
    from backdrift.report.distillation import compare, write_distillation_report

    options = parse(Distill, "distill", arguments)
    if options.n and options.n < 50:
        raise UserError(f"A comparison needs at least 50 samples, not {options.n}; 0 leaves it out.")
    if options.updates < 1:
        raise UserError(f"A distillation needs at least one update, not {options.updates}.")
    teacher = load(options.run, options.device)
    if (options.guidance, options.guidance_to) != (1, None) and not teacher.classes:
        raise UserError("This run has no labels, so there is no guidance to learn; leave --guidance out.")
    method = few_step(options.method, options.guidance, options.guidance_to)
    with training_bar() as bar:
        student = distill(
            teacher,
            options.steps,
            method=method,
            effort=Effort(options.updates, options.batch, options.lr),
            run=options.out,
            pictures=None if options.data is None else read(Train(data=options.data)),
            device=options.device,
            command=["backdrift", "distill", *arguments],
            on_progress=bar,
            on_notice=notice,
        )
    if options.n:
        found = compare(teacher, student, options.steps, options.n, options.guidance)
        for line in found.lines():
            say(line)
        say(f"report  {write_distillation_report(student.folder / 'distillation.html', teacher, student, found)}")
    say(f"next    backdrift sample {shlex.quote(str(student.folder))} --steps {options.steps}")
