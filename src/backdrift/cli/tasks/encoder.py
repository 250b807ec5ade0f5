"""`backdrift train --task encoder`: what a picture shows as a short vector, learned without labels."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from backdrift.cli.tasks import Task
from backdrift.errors import UserError


@dataclass(frozen=True)
class Encoder(Task):
    """An encoder trained to recognise two views of a picture among the others of its batch (SimCLR)."""

    size: int = 64
    """Numbers in a representation."""
    width: int = 32
    """Of the network, a multiple of 16."""
    blocks: int = 1
    """Convolutions per resolution."""
    temperature: float = 0.2
    """Small values tell pictures from the most similar ones."""
    placed: bool = False
    """Keep where things are, how large and of what colour: views differ in blur, light and grain only."""

    def choices(self, typed, pictures, made):
        from backdrift.represent import Contrast, EncoderChoice, views_for

        unused = {
            "--network": typed.network is not None,
            "--net": typed.net is not None,
            "--target": typed.target is not None,
            "--times": typed.times is not None,
            "--schedule": typed.schedule is not None,
            "--label-dropout": typed.label_dropout is not None,
            "the options of the loss": typed.loss != type(typed.loss)(),
            "the options of a network": any(own != type(own)() for own in (typed.unet, typed.mp_unet, typed.dit)),
        }
        if any(unused.values()):
            raise UserError(f"An encoder does not use {next(name for name, said in unused.items() if said)}.")
        return replace(
            made,
            net=EncoderChoice(self.width, self.blocks),
            objective=Contrast(
                self.size, self.temperature, views_for(pictures.shape, placed=self.placed, mirror=made.flip)
            ),
            flip=False,
            weight_decay=0.01,
        )

    def finish(self, trained, pictures, run):
        from backdrift.report.encoder import write_encoder_report

        path, lines = write_encoder_report(run, trained.network, pictures)
        own = shlex.quote(str(run.folder))
        return [
            *lines,
            f"model   {run.model_path}",
            f"report  {path}",
            f"next    backdrift train --task represented --from {own} --data {shlex.quote(trained_on(pictures))}",
        ]


def trained_on(pictures) -> str:
    """The word or path after --data."""
    source = pictures.source
    return str(source.get("path", source.get("kind", "DATA")))
