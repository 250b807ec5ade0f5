"""The training loop: a step, and what happens between two: measure, show, save, stop.

All randomness of the data is keyed by the place in the stream (`stream`), the rest (dropout) is torch's random state,
which a checkpoint holds. So a training that is stopped, killed or split over several commands ends with the very
weights of one that was not, on the same machine with the same number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from backdrift.data.pictures import Pictures
from backdrift.denoiser import Denoiser, Network
from backdrift.device import pick
from backdrift.errors import UserError
from backdrift.run import Run, build_network, read_model
from backdrift.train import checkpoint, guard, metrics
from backdrift.train.identity import describe, refuse_changes
from backdrift.train.networks import GivenNet
from backdrift.train.options import TrainOptions, for_pictures
from backdrift.train.precision import Precision, resolve
from backdrift.train.randomness import own_randomness
from backdrift.train.stop import Stopped, StopRequest
from backdrift.train.training import Training


@dataclass(frozen=True)
class Progress:
    """Where a training is, after each step. Rates are of this process; seconds_left is an estimate."""

    step: int
    steps: int
    loss: float
    lr: float
    pictures_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Trained:
    """What a training gives: the averaged network, the run's config, and what the user should be told."""

    network: Network
    config: dict
    run: Run | None
    notices: tuple[str, ...]


def train(
    pictures: Pictures,
    options: TrainOptions | None = None,
    *,
    run: Run | str | Path | None = None,
    start_from: Run | str | Path | None = None,
    device: str | torch.device | None = None,
    net: nn.Module | None = None,
    command: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    on_sample: Callable[[int, Denoiser], None] | None = None,
) -> Trained:
    """Train a network on the training part of `pictures`; with a run folder, continue where that run stopped.

    options: `for_pictures(pictures)` by default. run: the folder to write; None keeps everything in memory.
    start_from: another run (or its model.safetensors), whose averaged weights are the start. net: a module to train in
    place of `options.net`, in place, called as net(x, noise, cond). command: recorded in the config. on_sample: called
    with the step and the averaged network every `sample_every` steps.

    Raises `UserError` for options that do not fit the run folder or the data, `guard.NonFinite` for a loss or gradient
    that is not finite, `Stopped` after Ctrl-C or SIGTERM.
    """
    options = options or for_pictures(pictures)
    if net is not None:
        options = replace(options, net=GivenNet(type(net).__name__))
    device = pick(device)
    run = run if run is None or isinstance(run, Run) else Run(Path(run))
    notices: list[str] = []

    def notify(text: str) -> None:
        notices.append(text)
        if on_notice:
            on_notice(text)

    part, held_out = pictures.split()
    config = describe(pictures, part, held_out, options, start_from, command)
    saved = None
    if run is not None and run.begun():
        before = run.config()
        refuse_changes(before, config, run)
        for name in ("torch", "threads"):
            if before[name] != config[name]:
                notify(f"This run began with {name} {before[name]}, now {config[name]}: not the same bit for bit.")
        config = before
        saved, damaged = checkpoint.latest(run.checkpoints)
        for text in damaged:
            notify(text)
    else:
        config["precision"] = resolve(options.precision, device).value

    with own_randomness(device, options.seed):
        network = build_network(options, config["data"], net).to(device)
        if start_from is not None and saved is None:
            put_weights_of(start_from, network.net)
        training = Training(options, part, held_out, network, Precision(config["precision"]), device)
        if saved is not None:
            training.restore(*saved)
        if run is not None and not run.begun():
            run.begin(config)
        with run.locked() if run else nullcontext():
            if run is not None:
                run.rewind(training.step)
            if training.step == options.steps:
                notify(f"This run is finished: it has made its {options.steps} steps.")
                run.save_model(training.averaged.net, config, training.step)
            else:
                _loop(training, run, config, on_progress, on_sample)
    return Trained(training.averaged, config, run, tuple(notices))


def _loop(training: Training, run: Run | None, config: dict, on_progress, on_sample) -> None:
    options = training.options
    first = logged = training.step
    began, busy = time.perf_counter(), 0.0

    def save() -> None:
        if run is not None:
            checkpoint.save(run.checkpoints, training.step, training.tensors())
            run.save_model(training.averaged.net, config, training.step)

    def record(**values) -> None:
        if run is not None:
            run.append({"step": training.step, "pictures": training.step * options.batch, **values})

    with StopRequest() as stop:
        while training.step < options.steps:
            if stop.asked:
                save()
                kept = (
                    f"saved in {run.folder}, where the same command continues it" if run else "there is no run folder"
                )
                raise Stopped(f"Stopped after step {training.step} of {options.steps}: {kept}.")
            lr, start = training.lr(), time.perf_counter()
            loss = _advance(training)
            step, now = training.step, time.perf_counter()
            busy += now - start
            if on_progress:
                pace = (now - began) / (step - first)
                left = (options.steps - step) * pace
                on_progress(Progress(step, options.steps, loss, lr, options.batch * (step - logged) / busy, left))
            if due(step, options.log_every, options.steps):
                mean, by_noise = metrics.means(training.window)
                speed = round(options.batch * (step - logged) / busy, 1)
                record(loss=mean, loss_by_noise=by_noise, lr=lr, pictures_per_second=speed)
                training.window.zero_()
                logged, busy = step, 0.0
            if run is not None and due(step, options.validate_every, options.steps):
                mean, by_noise = training.validate()
                record(validation_loss=mean, validation_by_noise=by_noise)
            if on_sample and due(step, options.sample_every, options.steps):
                on_sample(step, training.averaged)
            if due(step, options.checkpoint_every, options.steps) or step == options.steps:
                save()


def _advance(training: Training) -> float:
    """A step, with one sentence in place of the error where memory runs out."""
    try:
        return training.advance()
    except (RuntimeError, MemoryError) as error:
        if not guard.out_of_memory(error):
            raise
    # tried outside the handler: the error holds on to the tensors of the step that failed
    options = training.options
    raise UserError(guard.memory_sentence(options.batch, training.largest_fitting_batch(), options.parts))


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after this step."""
    return every > 0 and (step % every == 0 or step == last)


def put_weights_of(other: Run | str | Path, net: nn.Module) -> None:
    """The averaged weights of another run into `net`. Raises `UserError` naming the first tensor that does not fit."""
    path = other.folder if isinstance(other, Run) else Path(other)
    tensors, _ = read_model(path if path.is_file() else Run(path).model_path)
    checkpoint.put(tensors, net, f"The weights of {path} do not fit this network")
