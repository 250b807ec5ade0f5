"""A run folder: everything a training leaves behind, and everything needed to repeat or use it.

    config.json           data, options and versions; `format` says how to read it
    model.safetensors     the averaged weights, with the config in their metadata: enough alone
    checkpoints/          what the training needs to go on (`train.checkpoint`)
    averages/             snapshots from which other averages are made afterwards (`train.posthoc`)
    metrics.jsonl         one line per record
    samples/ plans/       grids drawn during the training; tuned plans

Reading a run never runs code that it names: a network of someone's own is built only from what the caller passes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from backdrift.config import from_config
from backdrift.errors import UserError
from backdrift.fewstep import methods as _methods  # noqa: F401  (registers the objectives that a run may name)
from backdrift.files import write_json, write_text
from backdrift.process import Gaussian
from backdrift.represent import Contrast as _Contrast  # noqa: F401  (registers encoders, and who is told of them)
from backdrift.train import given as _given  # noqa: F401  (registers frozen text encoders)
from backdrift.train import onto as _onto  # noqa: F401  (registers the networks that stand on others)
from backdrift.train.checkpoint import on_cpu, put, remove, write
from backdrift.train.networks import FileNet, NetChoice
from backdrift.train.options import TrainOptions

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """A run folder by its path; nothing is read before it is asked for."""

    folder: Path

    def __post_init__(self):
        object.__setattr__(self, "folder", Path(self.folder))

    @property
    def config_path(self) -> Path:
        return self.folder / "config.json"

    @property
    def model_path(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def averages(self) -> Path:
        return self.folder / "averages"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def plans(self) -> Path:
        return self.folder / "plans"

    def tuned_plan(self, steps: int, guidance: float = 1.0) -> Path:
        """Where the plan tuned for this budget and guidance weight is kept."""
        weight = "" if guidance == 1 else f"-guidance-{guidance:g}"
        return self.plans / f"tuned-{steps}{weight}.json"

    def begun(self) -> bool:
        """Whether the folder holds a run."""
        return self.config_path.exists()

    def begin(self, config: dict) -> None:
        """Write the config of a new run. Raises `UserError` where the folder holds something else already."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; give the folder of the run.")
        entries = self.folder.iterdir() if self.folder.exists() else []
        strangers = sorted(p.name for p in entries if not p.name.startswith("."))
        if strangers:
            raise UserError(
                f"{self.folder} is not empty and holds no run (it has {strangers[0]}); give a new folder for the run."
            )
        write_json(self.config_path, config)

    def config(self) -> dict:
        """The config. Raises `UserError` where there is none, or a newer release wrote it."""
        try:
            text = self.config_path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.folder} is not a run folder: its config.json cannot be read.") from error
        return parse(text, self.config_path)

    def options(self) -> TrainOptions:
        """The options that the run was trained with."""
        return from_config(self.config()["options"])

    def metrics(self) -> list[dict]:
        """The records of metrics.jsonl, oldest first; a line that a crash cut short is left out."""
        return [record for _, record in self._lines()]

    def append(self, record: dict) -> None:
        """Add one record to metrics.jsonl. Raises `UserError` where the disk is full."""
        try:
            with open(self.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{self.metrics_path} cannot be written: {error.strerror}.") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The block has the folder to itself; the lock goes with the process. Raises `UserError` where one holds it."""
        try:
            import fcntl
        except ImportError:  # a system without such locks goes without
            yield
            return
        with open(self.folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"Another process is training in {self.folder}; wait for it or stop it.") from error
            yield

    def rewind(self, step: int) -> None:
        """Forget what happened after `step`: its metrics, and files that a crash left half-written."""
        kept = "".join(line + "\n" for line, record in self._lines() if record["step"] <= step)
        if self.metrics_path.exists():
            write_text(self.metrics_path, kept)
        for pattern in (".config.json.*", ".metrics.jsonl.*", ".model.safetensors.*", "*/.step-*"):
            for leftover in self.folder.glob(pattern):
                remove(leftover)

    def save_model(self, net: nn.Module, config: dict, step: int) -> None:
        """Write `net`, the averaged weights, with the config in the metadata."""
        write(self.model_path, on_cpu(net.state_dict()), {"backdrift": json.dumps({**config, "step": step})})

    def _lines(self) -> Iterator[tuple[str, dict]]:
        if not self.metrics_path.exists():
            return
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            yield line, record


def parse(text: str, where: Path) -> dict:
    """A config from its JSON. Raises `UserError` where it is not one that this release reads."""
    try:
        config = json.loads(text)
        version = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} is not a config that backdrift wrote, or it is damaged.") from error
    if version > FORMAT:
        raise UserError(f"{where} was written by a newer backdrift ({config.get('backdrift')}); install that or later.")
    return config


def build_network(options: TrainOptions, data: dict, net: nn.Module | None = None) -> nn.Module:
    """What a run trains, untrained, from options and the "data" entry of a config, around `net` where one is given.

    A `Network`, unless the objective trains something else.
    """
    shape, classes, objective = tuple(data["shape"]), tuple(data["classes"]), options.objective
    if net is None:
        seen = (shape[0] * (2 if objective.estimating else 1), *shape[1:])
        net = options.net.build(seen, len(classes), objective.outputs(shape[0], len(classes)))
    if options.text is not None:
        net = options.net.reading(net, options.text)
    std = data["std"] if options.std is None else options.std
    return objective.network(net, Gaussian(options.schedule), options.target, shape, std, classes)


def load_network(
    path: str | os.PathLike, device: str | torch.device = "cpu", net: NetChoice | nn.Module | None = None
) -> nn.Module:
    """The trained network of a run, averaged weights, in evaluation mode: a `Network`, unless its objective trains
    something else.

    path: a run folder, or a model.safetensors alone. net: for runs of someone's own network, that network again, as
    `FileNet.of("my_file.py:Net")` or as a module.

    Raises `UserError` where the files are missing or damaged, do not fit each other, or need `net`.
    """
    path = Path(path)
    file = path if path.is_file() else Run(path).model_path
    tensors, config = read_model(file)
    if path.is_dir():
        config = Run(path).config()
    options: TrainOptions = from_config(config["options"])
    choice = net if isinstance(net, NetChoice) else options.net
    if isinstance(choice, FileNet) and net is None:
        own = f"{choice.path}:{choice.name}"
        raise UserError(
            f"This run trained the network {own}, which no run folder may load by itself; pass --net {own}."
        )
    module = net if isinstance(net, nn.Module) else None
    network = build_network(replace(options, net=choice), config["data"], module)
    put(tensors, network.net, f"{file} does not fit its config")
    return network.to(device).eval().requires_grad_(False)


def read_model(file: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, config with the step) of a model.safetensors. Raises `UserError` for anything else."""
    if not file.parent.is_dir():
        raise UserError(f"There is no run folder {file.parent}.")
    if not file.exists():
        begun = (file.parent / "config.json").exists()
        hint = "this run has not reached its first checkpoint" if begun else f"{file.parent} is not a run folder"
        raise UserError(f"There is no {file}: {hint}.")
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {})["backdrift"]
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"{file} is no model that backdrift wrote, or it is damaged.") from error
    return tensors, parse(text, file)
