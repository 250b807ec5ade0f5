"""The records of metrics.jsonl, shown elsewhere as they are written: TensorBoard, Weights & Biases.

A tracker is a callable that takes a record; `train(..., on_record=tracker)` calls it with every one. metrics.jsonl
remains the truth: a tracker is opened with the first record that it gets, and a training that goes on from a checkpoint
writes over what came after it.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from typing import Any

from backdrift.errors import UserError
from backdrift.run import Run
from backdrift.train.metrics import BINS


def numbers(record: dict) -> dict[str, float]:
    """The figures of a record as single numbers: those by noise level get the bin's noise angle in their names."""
    found = {}
    for name, value in record.items():
        if isinstance(value, list):
            angles = [f"{name}/{90 * k / BINS:04.1f} to {90 * (k + 1) / BINS:04.1f} degrees" for k in range(BINS)]
            found.update(zip(angles, value, strict=True))
        elif name != "step":
            found[name] = value
    return {name: float(value) for name, value in found.items() if value is not None}


class Tracker(ABC):
    """Takes the records of `run`. Raises `UserError` when it is made where its package is missing."""

    def __init__(self, run: Run):
        self.run = run
        self.package = self._imported()
        self._opened: Any = None

    def __call__(self, record: dict) -> None:
        if self._opened is None:
            self._opened = self._open(record["step"])
        self._write(self._opened, record["step"], numbers(record))

    def close(self) -> None:
        """Everything is written after this; a tracker that got no record has nothing to close."""
        if self._opened is not None:
            self._close(self._opened)
            self._opened = None

    @abstractmethod
    def _imported(self): ...

    @abstractmethod
    def _open(self, step: int): ...

    @abstractmethod
    def _write(self, opened, step: int, values: dict[str, float]) -> None: ...

    @abstractmethod
    def _close(self, opened) -> None: ...


class TensorBoard(Tracker):
    """Event files in the run's `tensorboard/`: `tensorboard --logdir RUN`."""

    def _imported(self):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("Tracking with TensorBoard needs pip install backdrift[tensorboard].") from error
        return SummaryWriter

    def _open(self, step):
        # what an earlier process wrote from this step on is hidden
        return self.package(str(self.run.folder / "tensorboard"), purge_step=step)

    def _write(self, opened, step, values):
        for name, value in values.items():
            opened.add_scalar(name, value, step)

    def _close(self, opened):
        opened.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, in the project "backdrift" or the one that WANDB_PROJECT names.

    The same folder continues the same run. Raises `UserError` where nobody is logged in, unless WANDB_MODE is offline.
    """

    def _imported(self):
        try:
            import wandb
        except ImportError as error:
            raise UserError("Tracking with Weights & Biases needs pip install backdrift[wandb].") from error
        online = os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun")
        if online and not wandb.login(prompt=False, verify=False):
            raise UserError("Nobody is logged in to Weights & Biases; run wandb login, or set WANDB_MODE=offline.")
        return wandb

    def _open(self, step):
        config = self.run.config()
        where = f"{self.run.folder.absolute()} {config['data']['fingerprint']}"
        return self.package.init(
            project=os.environ.get("WANDB_PROJECT", "backdrift"),
            name=self.run.folder.absolute().name,
            id=hashlib.blake2b(where.encode(), digest_size=8).hexdigest(),
            resume="allow",
            config=config,
            dir=str(self.run.folder),
        )

    def _write(self, opened, step, values):
        opened.log(values, step=step)

    def _close(self, opened):
        opened.finish()
