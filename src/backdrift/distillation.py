"""Distillation of a run into one that needs one, two or four evaluations."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from backdrift import data
from backdrift.data.pictures import Pictures
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.evaluate.distances import frechet
from backdrift.evaluate.features import PixelPCA, extract
from backdrift.fewstep.consistency import UNIT
from backdrift.fewstep.methods import Method, Paths, Stage
from backdrift.fewstep.trajectory import Halving
from backdrift.interop.diffusers import is_folder
from backdrift.model import Model, load
from backdrift.onestep import NO_MEASURE, Watch
from backdrift.process.gaussian import Gaussian
from backdrift.run import Run
from backdrift.sample import sample
from backdrift.sample.default import default_grid
from backdrift.sample.plan import Plan
from backdrift.sample.sde import DDIM, Jump
from backdrift.target import EDM_F
from backdrift.train.ema import Power, Snapshots
from backdrift.train.loop import Trained, train
from backdrift.train.networks import ForeignNet
from backdrift.train.options import TrainOptions, for_pictures
from backdrift.train.rate import Constant, Cosine
from backdrift.train.stream import draw

COUNTS = (1, 2, 4)  # evaluations for which a student gets a plan
LEVELS = tuple(0.25 * 1.7**k for k in range(7))  # candidate times to stop at, as sigma / alpha in the papers' units

SEARCHED, AT_ONCE = 512, 256  # samples behind each candidate, and those that are made at once


@dataclass(frozen=True)
class Effort:
    """How much a distillation trains. steps: of the optimiser, over all stages. lr: that of each stage by default."""

    steps: int = 2000
    batch: int = 128
    lr: float | None = None


def distill(
    teacher: Model,
    steps: int = 2,
    *,
    method: Method | None = None,
    effort: Effort | None = None,
    run: str | os.PathLike | None = None,
    pictures: Pictures | None = None,
    device: str | torch.device | None = None,
    command: Sequence[str] = (),
    on_progress: Callable | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Model:
    """A student of a trained run that samples in `steps` evaluations: a run like any other, with plans for them.

    teacher: a run's, or that of a folder that diffusers wrote, which must stay where it is. method: `Paths()` by
    default. run: its folder, by default the teacher's with "-distilled"; called again, it goes on where it stopped.
    pictures: the teacher's data by default; needed for a folder from elsewhere.

    Raises `UserError` for a teacher without a run folder, or one that the method cannot serve, before any training;
    `Collapse` where a training collapses.
    """
    method, effort = method or Paths(), effort or Effort()
    network, options, pictures, start = beginning(teacher, pictures)
    if network.ends_path or "toward" in network.told:
        raise UserError("This run is a student already; distill its teacher.")
    if steps not in COUNTS:
        raise UserError(f"A student has {', '.join(map(str, COUNTS))} evaluations, not {steps}.")
    folder = Path(run) if run is not None else teacher.folder.with_name(teacher.folder.name + "-distilled")
    stages = method.stages(network.sigma_data, steps)
    for stage in stages:
        rehearse(stage, network, pictures, replace(stage_options(options, stage, effort), batch=2, parts=1))
    if on_notice:
        on_notice(NO_MEASURE)
    trained: Trained | None = None
    for n, stage in enumerate(stages):
        last = n == len(stages) - 1
        trained = train(
            pictures,
            stage_options(options, stage, effort),
            run=folder if last else folder.with_name(f"{folder.name}.{n + 1}-{stage.name}"),
            start_from=start,
            device=device,
            command=command,
            on_progress=on_progress,
            on_notice=on_notice,
            on_sample=Watch(pictures, max(1, round(effort.steps * stage.share))),
        )
        start = trained.run.folder
    student = load(folder, device)
    for count, plan in plans(student.denoiser, stages[-1].objective, steps, pictures).items():
        plan.save(Run(folder).tuned_plan(count))
    return student


def beginning(teacher: Model, pictures: Pictures | None) -> tuple[Network, TrainOptions, Pictures, Path | None]:
    """The teacher's network, the options of its training, its data, and the run whose weights are the start.

    A folder that diffusers wrote has its weights in its network, and options by the size of the pictures.
    """
    if teacher.folder is not None and is_folder(teacher.folder):
        if teacher.decode is not None:
            raise UserError(
                "This folder's model works on codes and not on pictures, and codes cannot be distilled yet."
            )
        if pictures is None:
            raise UserError("A folder from elsewhere does not say what it was trained on; give pictures (--data).")
        check_shape(teacher, pictures)
        std, schedule = pictures.split()[0].std, teacher.denoiser.process.schedule
        net = ForeignNet(str(teacher.folder.resolve()), std)
        options = replace(for_pictures(pictures), net=net, target=EDM_F(std), schedule=schedule, label_dropout=0.0)
        net = net.build(pictures.shape, len(pictures.classes))
        return Network(net, Gaussian(schedule), options.target, pictures.shape, std), options, pictures, None
    if teacher.folder is None or not isinstance(teacher.denoiser, Network) or not Run(teacher.folder).begun():
        raise UserError("Only a trained run can be distilled; load it from its folder.")
    pictures = pictures or data.load(Run(teacher.folder).config()["data"]["source"])
    check_shape(teacher, pictures)
    return teacher.denoiser, Run(teacher.folder).options(), pictures, teacher.folder


def check_shape(teacher: Model, pictures: Pictures) -> None:
    """Raises `UserError` unless the teacher makes such pictures."""
    if pictures.shape != teacher.event_shape:
        raise UserError(f"The teacher makes pictures of shape {teacher.event_shape}, and these have {pictures.shape}.")


def rehearse(stage: Stage, network: Network, pictures: Pictures, options: TrainOptions) -> None:
    """One loss of two pictures on a copy of the network. Raises `UserError` for what the objective cannot serve."""
    objective, net = stage.objective, copy.deepcopy(network.net).cpu()
    copied = objective.network(net, network.process, network.target, network.event_shape, network.sigma_data, ())
    head = objective.head(copied)
    objective.losses(copied, head, draw(pictures, options, torch.arange(2), torch.device("cpu")))


def stage_options(options: TrainOptions, stage: Stage, effort: Effort) -> TrainOptions:
    """The teacher's options with a stage's objective, times, rate and average."""
    steps = max(1, round(effort.steps * stage.share))
    often = max(1, steps // 8)
    return replace(
        options,
        steps=steps,
        batch=effort.batch,
        parts=min(options.parts, effort.batch),
        lr=effort.lr or options.lr * (1.0 if stage.settles else 0.3),
        rate=Cosine() if stage.settles else Constant(),
        objective=stage.objective,
        times=stage.times,
        average=Power(0.05 if stage.settles else 0.1),
        snapshots=Snapshots(count=0),
        validate_every=0,
        checkpoint_every=often,
        sample_every=often,
    )


def plans(network: Network, objective, steps: int, pictures: Pictures) -> dict[int, Plan]:
    """How the student samples, by evaluations."""
    schedule = network.process.schedule
    if isinstance(objective, Halving):
        times = default_grid(network).times(schedule, steps)
        return {steps: DDIM().plan(schedule, times)}
    if not (network.ends_path or "toward" in network.told):
        return {}
    return jump_plans(network, pictures)


@torch.no_grad()
def jump_plans(network: Network, pictures: Pictures) -> dict[int, Plan]:
    """Jumps with fresh noise or without, stopping on the way at times that are found one by one, each the best of
    `LEVELS`, by the Fréchet distance of `SEARCHED` samples to the training part in its principal components; four times
    as many decide between the two, which differ by less than chance does among a few hundred.
    """
    schedule, part = network.process.schedule, pictures.split()[0]
    real = part.tensor()
    features = PixelPCA.fit(real, min(24, real[0].numel(), len(real) - 1))
    target, device = extract(features, real), next(network.parameters()).device

    def score(plan: Plan, n: int) -> float:
        made = []
        for rows in torch.arange(n).split(AT_ONCE):
            cond = {name: value.to(device) for name, value in part.cond(rows % len(part)).items()}
            made.append(sample(network, index=rows.tolist(), plan=plan, cond=cond, seed=977).cpu())
        return frechet(extract(features, torch.cat(made)), target)

    ratios = torch.tensor(LEVELS, dtype=torch.float64) * network.sigma_data / UNIT
    places = [place for place in schedule.time(-2 * ratios.log()).tolist() if 0 < place < 1]
    found = {1: [Jump(0.0).plan(schedule, [1.0, 0.0])]}
    for solver in (Jump(0.0), Jump(1.0)):
        times = [1.0, 0.0]
        for count in range(2, max(COUNTS) + 1):
            tried = [sorted({*times, place}, reverse=True) for place in places if place not in times]
            times = min(tried, key=lambda each: score(solver.plan(schedule, each), SEARCHED))
            found.setdefault(count, []).append(solver.plan(schedule, times))
    return {count: min(found[count], key=lambda plan: score(plan, 4 * SEARCHED)) for count in COUNTS}
