"""`backdrift train --task classifier`: a classifier of noisy states, which guides a model trained apart from it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from backdrift.cli.tasks import Task
from backdrift.errors import UserError


@dataclass(frozen=True)
class Classifier(Task):
    """The way down of the U-Net that --unet describes, told the noise level and asked for the label."""

    def choices(self, typed, pictures, made):
        from backdrift.objective.classification import Classification
        from backdrift.train.networks import HalfUNetChoice

        if not pictures.classes:
            raise UserError("A classifier needs labels, and these pictures have none: put each class into a folder.")
        unused = {
            "--network": typed.network not in (None, "unet"),
            "--net": typed.net is not None,
            "--target": typed.target is not None,
            "--label-dropout": typed.label_dropout is not None,
            "the options of the loss": typed.loss != type(typed.loss)(),
            "--unet.residual-resampling": typed.unet.residual_resampling is not None,
        }
        if any(unused.values()):
            raise UserError(f"A classifier does not use {next(name for name, said in unused.items() if said)}.")
        return replace(
            made,
            net=HalfUNetChoice.like(made.net),
            objective=Classification(),
            label_dropout=0.0,
            # of few pictures a classifier soon knows every one
            weight_decay=0.05,
        )

    def finish(self, trained, pictures, run):
        from backdrift.report.classifier import write_classifier_report

        path = write_classifier_report(run, trained.network, pictures)
        own = shlex.quote(str(run.folder))
        return [
            f"model   {run.model_path}",
            f"report  {path}",
            f"next    backdrift sample RUN --classifier {own} --label {shlex.quote(pictures.classes[0])}",
        ]
