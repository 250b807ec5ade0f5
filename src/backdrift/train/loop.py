"""The training loop: a step, and what happens between two: measure, show, save, stop.

All randomness of the data is keyed by the place in the stream (`stream`), the rest (dropout) is torch's random state,
seeded anew for every step. So a training that is stopped, killed or split over several commands ends with the very
weights of one that was not, on the same machine with the same number of threads and processes.

Under torchrun every process runs this loop (`distributed`); process 0 alone writes and calls back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from backdrift.data.pictures import Pictures
from backdrift.denoiser import Denoiser, Network
from backdrift.device import pick
from backdrift.errors import UserError
from backdrift.objective.denoising import Denoising
from backdrift.run import Run, build_network, read_model
from backdrift.train import checkpoint, distributed, guard, metrics, posthoc, sharded
from backdrift.train.distributed import ProcessLost, World
from backdrift.train.identity import describe, flat, refuse_changes
from backdrift.train.networks import GivenNet, NetChoice
from backdrift.train.onto import Onto
from backdrift.train.options import TrainOptions, for_pictures
from backdrift.train.precision import Precision, resolve
from backdrift.train.randomness import own_randomness
from backdrift.train.stop import Stopped, StopRequest
from backdrift.train.training import Training


@dataclass(frozen=True)
class Progress:
    """Where a training is, after each step. Rates are since the command began; seconds_left is an estimate."""

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
    on_sample: Callable[[int, Denoiser], dict | None] | None = None,
    on_record: Callable[[dict], None] | None = None,
    shard: bool = False,
) -> Trained:
    """Train a network on the training part of `pictures`; with a run folder, continue where that run stopped.

    options: `for_pictures(pictures)` by default. run: the folder to write; None keeps everything in memory.
    start_from: another run (or its model.safetensors), whose averaged weights are the start. net: a module to train in
    place of `options.net`, in place, called as net(x, noise, cond). command: recorded in the config. on_sample: called
    with the step and the averaged network every `sample_every` steps; what it returns is recorded. on_record: called
    with every record that goes into metrics.jsonl (`trackers`).

    Under torchrun every process calls this with the same arguments and gets the same network; process 0 alone writes
    and calls back. shard: split weights, averages and moments over the processes (`distributed`).

    Raises `UserError` for options that do not fit the run folder, the data or the processes, `guard.NonFinite` for a
    loss or gradient that is not finite, `ProcessLost` where another process has ended, `Stopped` after Ctrl-C or
    SIGTERM.
    """
    options = options or for_pictures(pictures)
    if net is not None:
        options = replace(options, net=GivenNet(type(net).__name__))
    run = run if run is None or isinstance(run, Run) else Run(Path(run))
    notices: list[str] = []

    def notify(text: str) -> None:
        notices.append(text)
        if on_notice:
            on_notice(text)

    with distributed.join(pick(device)) as world:
        check(options, world, shard)
        part, held_out = pictures.split()
        if options.text is not None:
            part, held_out = (half.reading(options.text.encode) for half in (part, held_out))
        config = {**describe(pictures, part, held_out, options, start_from, command), "processes": world.size}
        distributed.refuse_disagreement(flat({name: config[name] for name in ("options", "data", "start_from")}), world)
        config, saved, remarks = world.told(_beginning(run, options, config, world) if world.first else None)
        for text in remarks if world.first else ():
            notify(text)
        with own_randomness(world.device, options.seed):
            network = build_network(options, config["data"], net).to(world.device)
            if start_from is not None and saved is None:
                put_weights_of(start_from, options.net, network.net)
            precision = Precision(config["precision"])
            training = Training(options, part, held_out, network, precision, world.device, world, shard)
            if saved is not None:
                training.restore(saved)
            with _only_writer(run, config, training.step) if run and world.first else nullcontext():
                if training.step < options.steps:
                    _loop_together(training, run, config, on_progress, on_sample, on_record)
                else:
                    if world.first:
                        notify(f"This run is finished: it has made its {options.steps} steps.")
                    _save_model(training, run, config)
            return Trained(training.average().to(world.device), config, run, tuple(notices))


def check(options: TrainOptions, world: World, shard: bool) -> None:
    """Raises `UserError` for a training that these processes cannot share."""
    if options.batch % world.size:
        fits = max(1, options.batch // world.size) * world.size
        raise UserError(
            f"A batch of {options.batch} cannot be shared equally by {world.size} processes; "
            f"choose a batch of {fits}, or another number of processes."
        )
    share = options.batch // world.size
    if options.parts > share:
        raise UserError(f"The {share} pictures that each process has of a batch cannot pass in {options.parts} parts.")
    if not shard:
        return
    if world.size == 1:
        raise UserError(
            "Sharding splits a network over processes, and this is the only one; start several, as in "
            "torchrun --nproc-per-node 2 -m -- backdrift train ..., or leave it out."
        )
    if not isinstance(options.objective, Denoising) or options.objective.estimating:
        # others call the network more often, in some processes or inside a derivative, where FSDP2 cannot follow
        raise UserError(
            "Sharding serves the denoising loss without self-conditioning only; leave out one or the other."
        )
    if isinstance(options.net, Onto):
        raise UserError("Sharding serves networks that stand by themselves, not what is trained upon another run.")
    sharded.storage()


def _beginning(run: Run | None, options: TrainOptions, config: dict, world: World) -> tuple:
    """The config to go by, the checkpoint to go on from or None, and what to tell the user about them."""
    if run is None or not run.begun():
        return {**config, "precision": resolve(options.precision, world.device).value}, None, []
    before = run.config()
    before.setdefault("processes", 1)  # a run that began before there could be more
    refuse_changes(before, config, run)
    remarks = [
        f"This run began with {name} {before[name]}, now {config[name]}: not the same bit for bit."
        for name in ("torch", "threads", "processes")
        if before[name] != config[name]
    ]
    saved, damaged = checkpoint.latest(run.checkpoints)
    return before, saved, remarks + damaged


@contextmanager
def _only_writer(run: Run, config: dict, step: int) -> Iterator[None]:
    if not run.begun():
        run.begin(config)
    with run.locked():
        run.rewind(step)
        yield


def _loop_together(training: Training, run: Run | None, config: dict, on_progress, on_sample, on_record) -> None:
    """The loop, with one sentence in place of the error where another process is lost."""
    alone = training.world.size == 1
    # around the handler too: torchrun sends SIGTERM as soon as a process is lost, and what is being saved must be
    with StopRequest(patient=not alone) as stop:
        try:
            _loop(training, run, config, stop, on_progress, on_sample, on_record)
        except RuntimeError as error:
            if alone or not distributed.lost(error):
                raise
            raise ProcessLost(_rescue(training, run, config)) from error


def _rescue(training: Training, run: Run | None, config: dict) -> str:
    """Save what can be saved without the other processes, and say what there is."""
    if not training.sharded:
        # all that processes say to each other in a step comes before its update: this is the last whole step
        _save(training, run, config)
    kept = checkpoint.all_in(run.checkpoints) if run else []
    then = "nothing was saved"
    if kept:
        then = f"step {checkpoint.step_of(kept[-1])} is saved in {run.folder}, where the same command continues it"
    after = f"after step {training.step} of {training.options.steps}"
    return f"Another process of this job ended or stopped answering {after}: {then}."


def _loop(
    training: Training, run: Run | None, config: dict, stop: StopRequest, on_progress, on_sample, on_record
) -> None:
    options, world = training.options, training.world
    first = logged = training.step
    snapshots = options.snapshots.steps(options.steps) if run is not None and training.keeps_snapshots else ()
    began, busy = time.perf_counter(), 0.0

    def record(**values) -> None:
        if not world.first:
            return
        made = {"step": training.step, "pictures": training.step * options.batch, **values}
        if run is not None:
            run.append(made)
        if on_record:
            on_record(made)

    while training.step < options.steps:
        if world.any(stop.asked):
            _save(training, run, config)
            kept = f"saved in {run.folder}, where the same command continues it" if run else "there is no run folder"
            raise Stopped(f"Stopped after step {training.step} of {options.steps}: {kept}.")
        lr, start = training.lr(), time.perf_counter()
        loss = _advance(training)
        step, now = training.step, time.perf_counter()
        busy += now - start
        if on_progress and world.first:
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
            shown = _sample(training, on_sample)
            if shown:
                record(**shown)
        if step in snapshots:
            averages = training.snapshot()
            if world.first:
                posthoc.save(run.averages, step, averages)
        if due(step, options.checkpoint_every, options.steps) or step == options.steps:
            _save(training, run, config)


def _advance(training: Training) -> float:
    """A step, with one sentence in place of the error where memory runs out."""
    try:
        return training.advance()
    except (RuntimeError, MemoryError) as error:
        if not guard.out_of_memory(error):
            raise
    # tried outside the handler: the error holds on to the tensors of the step that failed
    batch, at_once, size = training.options.batch, training.at_once, training.world.size
    if training.sharded:
        raise UserError(
            f"Memory ran out with {at_once} pictures at once; use a smaller batch, or pass it in more parts."
        )
    raise UserError(guard.memory_sentence(batch, at_once, training.largest_fitting_batch(), size))


def _save(training: Training, run: Run | None, config: dict) -> None:
    if run is not None:
        checkpoint.save(run.checkpoints, training.step, training.tensors(), training.world)
        _save_model(training, run, config)


def _save_model(training: Training, run: Run, config: dict) -> None:
    average = training.average()
    if training.world.first:
        run.save_model(average.net, config, training.step)


def _sample(training: Training, on_sample: Callable[[int, Denoiser], dict | None]) -> dict | None:
    average, shown = training.average(), None
    if training.world.first:
        shown = on_sample(training.step, average.to(training.device))
        if training.sharded:
            average.cpu()  # where it waits: an accelerator holds shares only
    return shown


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after this step."""
    return every > 0 and (step % every == 0 or step == last)


def put_weights_of(other: Run | str | Path, choice: NetChoice, net: nn.Module) -> None:
    """The averaged weights of another run into `net`, built by `choice`.

    Raises `UserError` naming the first tensor that does not fit.
    """
    path = other.folder if isinstance(other, Run) else Path(other)
    tensors, _ = read_model(path if path.is_file() else Run(path).model_path)
    # what the other was not told of starts as nothing
    tensors = {**{name: x for name, x in net.state_dict().items() if ".further." in name}, **tensors}
    choice.start(net, tensors, f"The weights of {path} do not fit this network")
