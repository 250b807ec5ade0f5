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
    """The run folder, or a folder that diffusers wrote."""
    nfe: int = 5
    """Calls of the network per sample."""
    guidance: float = 1.0
    """The guidance weight that the plan is for."""
    label: tuple[str, ...] | None = None
    """The classes to tune on, by number or name; left out, all of them, and no label too where guidance is 1."""
    cond: Path | None = None
    """A .npz of further conditions by name, whose rows the noises take in turn."""
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
    if options.label == ():
        raise UserError("--label needs a value.")
    from dataclasses import replace

    from backdrift.model import load
    from backdrift.progress import counting_bar
    from backdrift.report.tuning import write_tuning_report
    from backdrift.run import Run
    from backdrift.sample.tune import Effort, check_budget, tuned
    from backdrift.train.networks import FileNet

    check_budget(options.nfe)
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
    """The conditions (C, ...) that the noises take in turn, labels among them where the model has any; or None."""
    import torch

    from backdrift.cli.sample import read_conditions

    cond, label = read_conditions(options.cond), None
    if options.label:
        label = model.labels(list(options.label), len(options.label))
    elif model.classes:
        # one more than the classes is "no label", which guidance cannot follow and not every network knows
        none = options.guidance == 1 and not getattr(model.denoiser, "needs_condition", False)
        label = torch.arange(len(model.classes) + none)
    if label is not None:
        rows = max((len(value) for value in cond.values()), default=len(label))
        cond["label"] = label[torch.arange(rows) % len(label)]
    return cond or None
