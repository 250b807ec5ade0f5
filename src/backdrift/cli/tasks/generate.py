"""`backdrift train --task generate`, the default: a denoiser, which samples."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from backdrift.cli.tasks import Task


@dataclass(frozen=True)
class Generate(Task):
    """A denoiser, shown in grids on the way and in the run's report."""

    def drawing(self, pictures, run):
        from backdrift.data import save_grid
        from backdrift.model import of_run

        label = [i % len(pictures.classes) for i in range(36)] if pictures.classes else None

        def draw(step: int, denoiser) -> None:
            model = of_run(denoiser, run.config())
            text = None if model.text is None else [pictures.texts[i % len(pictures)] for i in range(36)]
            made = model.sample(36, label=label, text=text, steps=15)
            save_grid(made, run.samples / f"step-{step:07d}.png")

        return draw

    def finish(self, trained, pictures, run):
        from backdrift.model import of_run
        from backdrift.report.run import write_report

        path = write_report(run, of_run(trained.network, trained.config, run.folder), pictures)
        return [
            f"model   {run.model_path}",
            f"report  {path}",
            f"next    backdrift sample {shlex.quote(str(run.folder))}",
        ]
