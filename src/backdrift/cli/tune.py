"""`backdrift tune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError


@dataclass(frozen=True)
class Tune:
    """Optimise a sampling plan for a run at a few evaluations; `backdrift sample` uses it from then on."""

    run: Positional[Path]
    """The run folder."""
    nfe: int = 5
    """Calls of the network per sample."""
    guidance: float = 1.0
    """The guidance weight that the plan is for."""
    label: tuple[str, ...] = ()
    """The classes to tune on, by number or name; left out, all of them, and no label too where guidance is 1."""
    noises: int | None = None
    """Noises to train on, and as many to judge."""
    updates: int | None = None
    """Steps of the optimiser."""
    seed: int = 0
    device: str | None = None
    net: str | None = None
    """The network's own file, for a run trained with --net."""


def main(arguments: list[str]) -> None:
    options = parse(Tune, "tune", arguments)
    if options.nfe < 1:
        raise UserError(f"A plan needs at least 1 evaluation, not {options.nfe}.")
    from dataclasses import replace

    from backdrift.model import load
    from backdrift.progress import counting_bar
    from backdrift.report.tuning import write_tuning_report
    from backdrift.run import Run
    from backdrift.sample.tune import Effort, tuned
    from backdrift.train.networks import FileNet

    model = load(options.run, options.device, None if options.net is None else FileNet.of(options.net))
    cond = conditions(model, options)
    denoiser = model.guided(options.guidance, cond)
    given = {"noises": options.noises, "steps": options.updates}
    effort = replace(Effort.of(denoiser), **{name: value for name, value in given.items() if value is not None})
    with counting_bar("tuning") as bar:
        found = tuned(denoiser, options.nfe, cond=cond, seed=options.seed, effort=effort, on_step=bar)
    for line in found.lines():
        say(line)
    path = Run(options.run).tuned_plan(options.nfe, options.guidance)
    found.plan.save(path)
    say(f"plan    {path}")
    say(f"report  {write_tuning_report(path.with_suffix('.html'), denoiser, found)}")


def conditions(model, options: Tune):
    """{"label": (C,)}, the classes that the noises take in turn; None for a model without labels."""
    import torch

    if options.label:
        return {"label": model.labels(list(options.label), len(options.label))}
    if not model.classes:
        return None
    # one more than the classes is "no label", which guidance cannot follow
    return {"label": torch.arange(len(model.classes) + (options.guidance == 1))}
