"""`backdrift train --task inpainting`: a model that is shown the known part of a picture and makes the rest."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from backdrift.cli.tasks import Task
from backdrift.errors import UserError


@dataclass(frozen=True)
class Inpainting(Task):
    """A model that is given the known pixels and their mask beside the noisy picture, with masks drawn at random."""

    def choices(self, typed, pictures, made):
        from backdrift.data.derived import KnownPixels, channels
        from backdrift.train.onto import BesideChoice

        if typed.net is not None:
            raise UserError("A model that fills pictures in is one of the library's networks: leave out --net.")
        derived = (KnownPixels(),)
        return replace(made, net=BesideChoice(made.net, channels(derived, pictures.shape)), derived=derived)

    def drawing(self, pictures, run):
        from backdrift.data import save_grid
        from backdrift.report.control import filled

        def draw(step: int, denoiser) -> None:
            save_grid(filled(denoiser, pictures), run.samples / f"step-{step:07d}.png", columns=12)

        return draw

    def finish(self, trained, pictures, run):
        from backdrift.report.control import write_inpainting_report

        path = write_inpainting_report(run, trained.network, pictures)
        own = shlex.quote(str(run.folder))
        return [
            f"model   {run.model_path}",
            f"report  {path}",
            f"next    backdrift edit {own} --image in.png --mask mask.png",
        ]
