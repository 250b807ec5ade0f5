"""The runs of a folder, one line of figures each; what cannot be read is named and not passed over."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

from safetensors import SafetensorError, safe_open

from backdrift.errors import UserError
from backdrift.report.facts import evaluation, last
from backdrift.run import Run


@dataclass(frozen=True)
class Figure:
    """A figure with its floor; None is unknown. name: with what it was measured by, such as FD (pixel PCA 24)."""

    name: str
    value: float | None
    floor: float | None


@dataclass(frozen=True)
class Summary:
    """A run in a line. What a run does not have is None; problem: what cannot be read of it, "" for a whole run.

    weights: how many numbers its model holds. speed: pictures per second in training, the median of its log. bits: per
    dimension, by method (`backdrift score`). size: bytes of all its files. changed: when it last was written to.
    """

    run: Run
    problem: str = ""
    data: str | None = None
    network: str | None = None
    weights: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    held_out: float | None = None
    distance: Figure | None = None
    recall: Figure | None = None
    bits: tuple[tuple[str, float], ...] = ()
    speed: float | None = None
    size: int = 0
    changed: datetime | None = None


def find(folder: Path) -> list[Path]:
    """Run folders at or below `folder`, in alphabetical order; runs inside runs are not looked for.

    Raises `UserError` where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give the one that your runs are in.")
    return sorted(_runs(folder))


def _runs(folder: Path) -> Iterator[Path]:
    try:
        entries = {entry.name: entry.is_dir() for entry in os.scandir(folder)}
    except OSError:
        return
    if _looks_like_a_run(folder, entries):
        yield folder
        return
    for name, is_folder in entries.items():
        if is_folder and not name.startswith("."):
            yield from _runs(folder / name)


def _looks_like_a_run(folder: Path, entries: dict[str, bool]) -> bool:
    """A config of ours, or a damaged or missing one beside what else a run leaves: that is a broken run."""
    if "metrics.jsonl" in entries and "checkpoints" in entries:
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return "model.safetensors" in entries
    return isinstance(config, dict) and {"format", "backdrift", "options"} <= config.keys()


def summary(folder: Path) -> Summary:
    """The figures of the run in `folder`; never raises for a broken one."""
    run = Run(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    stats = [path.stat() for path in files]
    changed = max((stat.st_mtime for stat in stats), default=None)
    common = {
        "run": run,
        "size": sum(stat.st_size for stat in stats),
        "changed": None if changed is None else datetime.fromtimestamp(changed),
    }
    try:
        return Summary(**common, **_figures(run))
    except UserError as error:
        return Summary(**common, problem=str(error))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:
        return Summary(**common, problem=f"It cannot be read: {type(error).__name__}: {error}.")


def _figures(run: Run) -> dict:
    config = run.config()
    source, records = config["data"]["source"], run.metrics()
    speeds = [record["pictures_per_second"] for record in records if "pictures_per_second" in record]
    found = evaluation(run)
    rows = [] if found is None else [Figure(row["name"], row["value"], row["floor"]) for row in found["rows"]]
    figures = {
        "data": Path(source["path"]).name if "path" in source else source["kind"],
        "network": config["options"]["net"]["kind"].removeprefix("net."),
        "step": last(records, "step"),
        "steps": config["options"]["steps"],
        "loss": last(records, "loss"),
        "held_out": last(records, "validation_loss"),
        "distance": next((row for row in rows if row.name.startswith(("FD", "FID"))), None),
        "recall": next((row for row in rows if row.name.startswith("recall")), None),
        "bits": tuple(_scores(run)),
        "speed": median(speeds) if speeds else None,
    }
    if not run.model_path.exists():
        return {**figures, "problem": "" if run.checkpoints.exists() else "It has not reached its first checkpoint."}
    weights, step = _model(run.model_path)
    return {**figures, "weights": weights, "step": step if figures["step"] is None else figures["step"]}


def _model(path: Path) -> tuple[int, int]:
    """(numbers, step) of a model, from its head alone."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
            return sum(map(math.prod, shapes)), json.loads(file.metadata()["backdrift"])["step"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError("Its model.safetensors is damaged.") from error


def _scores(run: Run) -> Iterator[tuple[str, float]]:
    for path in sorted(run.folder.glob("score-*.json")):
        yield path.stem.removeprefix("score-"), json.loads(path.read_text(encoding="utf-8"))["bits"]
