"""`backdrift train --task represented`: pictures of a given representation, for RCG and for style by a reference."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from backdrift.cli.tasks.encoder import trained_on
from backdrift.cli.tasks.generate import Generate
from backdrift.errors import UserError

REFERENCES = 6  # pictures whose likenesses are shown


@dataclass(frozen=True)
class Represented(Generate):
    """A denoiser that is told what the encoder of the run --from says of the picture."""

    dropout: float = 0.1
    """Share of the pictures whose representation is hidden in training, for guidance."""

    def choices(self, typed, pictures, made):
        from backdrift.represent import Contrast, InformedChoice, Likeness
        from backdrift.run import Run

        if typed.from_ is None:
            raise UserError("--task represented needs an encoder's run: add --from RUN (see --task encoder).")
        run = Run(typed.from_)
        encoder, shape = run.options(), tuple(run.config()["data"]["shape"])
        if not isinstance(encoder.objective, Contrast):
            raise UserError(f"{run.folder} holds no encoder; backdrift train --task encoder makes one.")
        if shape != pictures.shape:
            raise UserError(f"The encoder in {run.folder} is for pictures of {shape}, and these are {pictures.shape}.")
        net = InformedChoice(made.net, encoder.net, encoder.objective.size)
        return replace(made, net=net, derived=(*made.derived, Likeness(dropout=self.dropout)))

    def finish(self, trained, pictures, run):
        import torch

        from backdrift.data import save_grid
        from backdrift.model import Model

        model = Model(trained.network, pictures.classes, run.folder)
        _, held_out = pictures.split()
        references = held_out.tensor(range(min(REFERENCES, len(held_out))))
        made = [model.sample(7, cond={"like": one.expand(7, *one.shape)}).cpu() for one in references]
        sheet = run.samples / "likeness.png"
        rows = [torch.cat([one[None], row]) for one, row in zip(references, made, strict=True)]
        save_grid(torch.cat(rows), sheet, columns=8)
        own, data = shlex.quote(str(run.folder)), shlex.quote(trained_on(pictures))
        return [
            *super().finish(trained, pictures, run)[:-1],
            f"sheet   {sheet}",
            f"next    backdrift train --task prior --prior.of {own} --data {data}",
            f"        backdrift sample {own} --like PICTURE.png",
        ]
