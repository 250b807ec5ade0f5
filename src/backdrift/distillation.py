"""Distillation of a run into one that needs one, two or four evaluations."""

from __future__ import annotations

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
from backdrift.fewstep.methods import Easy, Method
from backdrift.fewstep.trajectory import Halving
from backdrift.model import Model, load
from backdrift.run import Run
from backdrift.sample.default import default_grid
from backdrift.sample.plan import Plan
from backdrift.sample.sde import DDIM, Jump
from backdrift.train.ema import Power, Snapshots
from backdrift.train.loop import Trained, train
from backdrift.train.options import TrainOptions
from backdrift.train.rate import Constant

COUNTS = (1, 2, 4)  # evaluations for which a student gets a plan
LEVELS = tuple(0.15 * 1.35**k for k in range(13))  # candidate times to stop at, as sigma / alpha in the papers' units


@dataclass(frozen=True)
class Effort:
    """How much a distillation trains. steps: of the optimiser, over all stages. batch, lr: the rest."""

    steps: int = 2000
    batch: int = 128
    lr: float = 3e-4


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

    method: `Easy()` by default. run: its folder, by default the teacher's with "-distilled"; called again, it goes on
    where it stopped. pictures: the teacher's data by default.

    Raises `UserError` for a teacher without a run folder, or one that the method cannot serve, before any training.
    """
    method, effort = method or Easy(), effort or Effort()
    if teacher.folder is None or not isinstance(teacher.denoiser, Network) or not Run(teacher.folder).begun():
        raise UserError("Only a trained run can be distilled; load it from its folder.")
    if teacher.denoiser.ends_path:
        raise UserError("This run is a student already; distill its teacher.")
    if steps not in COUNTS:
        raise UserError(f"A student has {', '.join(map(str, COUNTS))} evaluations, not {steps}.")
    options = Run(teacher.folder).options()
    folder = Path(run) if run is not None else teacher.folder.with_name(teacher.folder.name + "-distilled")
    pictures = pictures or data.load(Run(teacher.folder).config()["data"]["source"])
    stages = method.stages(teacher.denoiser.sigma_data, steps)
    for stage in stages:
        stage.objective.head(teacher.denoiser)  # refuses what it cannot serve
    start: Path = teacher.folder
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
        )
        start = trained.run.folder
    student = load(folder, device)
    for count, plan in plans(student.denoiser, stages[-1].objective, steps, pictures).items():
        plan.save(Run(folder).tuned_plan(count))
    return student


def stage_options(options: TrainOptions, stage, effort: Effort) -> TrainOptions:
    """The teacher's options with a stage's objective and times, and a constant small rate."""
    steps = max(1, round(effort.steps * stage.share))
    often = max(1, steps // 4)
    return replace(
        options,
        steps=steps,
        batch=effort.batch,
        parts=min(options.parts, effort.batch),
        lr=effort.lr,
        rate=Constant(warmup=0.02),
        objective=stage.objective,
        times=stage.times,
        average=Power(0.1),
        snapshots=Snapshots(count=0),
        validate_every=0,
        checkpoint_every=often,
        sample_every=0,
    )


def plans(network: Network, objective, steps: int, pictures: Pictures) -> dict[int, Plan]:
    """How the student samples, by evaluations."""
    schedule = network.process.schedule
    if isinstance(objective, Halving):
        times = default_grid(network).times(schedule, steps)
        return {steps: DDIM().plan(schedule, times)}
    if not network.ends_path:
        return {}
    return {count: Jump().plan(schedule, jump_times(network, count, pictures)) for count in COUNTS}


@torch.no_grad()
def jump_times(network: Network, count: int, pictures: Pictures, n: int = 512) -> list[float]:
    """Where to stop on the way: times from 1 to 0, found one by one, each the best of `LEVELS` by the Fréchet distance
    of n samples to the training part, in its principal components.
    """
    schedule = network.process.schedule
    real = pictures.split()[0].tensor()
    features = PixelPCA.fit(real, min(24, real[0].numel(), len(real) - 1))
    target = extract(features, real)
    index = list(range(n))
    labels = {"label": torch.arange(n) % len(pictures.classes)} if pictures.classes else {}
    if pictures.labels is not None:
        labels = pictures.split()[0].cond(torch.arange(n) % len(real))
    device = next(network.parameters()).device
    labels = {name: value.to(device) for name, value in labels.items()}

    def score(times: list[float]) -> float:
        from backdrift.sample import sample

        made = sample(network, index=index, plan=Jump().plan(schedule, times), cond=labels, seed=977)
        return frechet(extract(features, made.cpu()), target)

    times = [1.0, 0.0]
    ratios = [level * network.sigma_data / UNIT for level in LEVELS]
    places = schedule.time(-2 * torch.tensor(ratios, dtype=torch.float64).log()).clamp(0, 1).tolist()
    for _ in range(count - 1):
        tried = [sorted({*times, place}, reverse=True) for place in places if 0 < place < 1 and place not in times]
        times = min(tried, key=score)
    return times
