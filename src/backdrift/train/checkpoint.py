"""Checkpoints: all that a training needs to go on as if it had never stopped, in one safetensors file each.

The file holds the weights, their averages, the optimiser's moments and the open window of the metrics; its metadata
hold the step (which is also the data position) and a checksum of everything. It appears whole or not at all, the last
two are kept, and a damaged one is skipped. Nothing is pickled.

A training whose tensors are sharded over processes writes a folder of pieces in the file's place (`sharded`). Either
can be read by any number of processes, sharded or not: what is read goes straight into the tensors of the training.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backdrift.errors import UserError
from backdrift.files import atomic_path
from backdrift.train import sharded
from backdrift.train.distributed import ALONE, World, is_sharded, share_of

KEPT = 2
_BROKEN = (SafetensorError, OSError, ValueError, KeyError)


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk. shapes: of its tensors, by name."""

    path: Path
    step: int
    shapes: Mapping[str, tuple[int, ...]]

    @torch.no_grad()
    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Copy the tensors of these names into `targets`, of which each process may hold a share.

        Raises `UserError` naming the first that does not fit. An optimiser's moments may be missing: a weight that had
        no gradient has none.
        """
        wanted = {name: x for name, x in targets.items() if name in self.shapes or "optimiser." not in name}
        ours = {name: tuple(x.shape) for name, x in wanted.items()}
        weights = [name for name in self.shapes if name.startswith(("net.", "average.", "head."))]
        complaint = f"The checkpoint {self.path} does not fit the network of this config"
        refuse_misfit(ours, self.shapes, [*ours, *weights], complaint)
        if self.path.is_dir():
            sharded.fill(self.path, wanted)
            return
        with safe_open(self.path, framework="pt") as file:
            for name, target in wanted.items():
                target.copy_(share_of(file.get_tensor(name), target))


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], world: World = ALONE) -> None:
    """Write the checkpoint of `step`; older ones beyond the last two go, and any of later steps.

    Every process calls this; where the tensors are whole, process 0 alone writes.
    """
    if any(map(is_sharded, tensors.values())):
        sharded.save(folder / f"step-{step:07d}{sharded.SUFFIX}", step, tensors, world)
    elif world.first:
        tensors = on_cpu(tensors)
        header = {"step": step, "checksum": checksum(tensors)}
        write(folder / f"step-{step:07d}.safetensors", tensors, {"checkpoint": json.dumps(header)})
    if world.first:
        there = all_in(folder)
        kept = [path for path in there if step_of(path) <= step][-KEPT:]
        for path in set(there) - set(kept):
            remove(path)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Raises `UserError` where the disk is full."""
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise RuntimeError(str(error)) from error  # which `atomic_path` puts into words where the disk is full


def load(path: Path) -> tuple[int, dict[str, Tensor]]:
    """(step, tensors). Raises `ValueError` and kin for a file that is not whole."""
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["checkpoint"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if checksum(tensors) != header["checksum"]:
        raise ValueError("its checksum does not match")
    return header["step"], tensors


def verified(path: Path) -> Saved:
    """The checkpoint, read through once. Raises `ValueError` and kin where it is not whole."""
    if path.is_dir():
        return Saved(path, *sharded.verified(path))
    step, tensors = load(path)
    return Saved(path, step, {name: tuple(x.shape) for name, x in tensors.items()})


def latest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint that can be read, or None where there are none, and notices of those that cannot.

    Raises `UserError` where there are some and none can be read.
    """
    notices = []
    for path in reversed(all_in(folder)):
        try:
            found = verified(path)
        except _BROKEN as error:
            notices.append(f"The checkpoint {path.name} is damaged ({error}), so the one before it is used.")
        else:
            return found, notices
    if notices:
        raise UserError(f"No checkpoint in {folder} can be read; remove that folder to train from the beginning.")
    return None, []


def pack(net: nn.Module, averaged: nn.Module, head: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of a training, by name. head: what the objective trains beside the network."""
    moments = {
        f"{prefix}.{name}.{key}": value
        for prefix, module in (("optimiser", net), ("head_optimiser", head))
        for name, parameter in module.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
    return {**_named("net", net), **_named("average", averaged), **_named("head", head), **moments}


def put(tensors: Mapping[str, Tensor], net: nn.Module, complaint: str) -> None:
    """Copy named weights into `net`. Raises `UserError`, `complaint` and the first difference, if they do not fit."""
    ours, theirs = ({name: tuple(x.shape) for name, x in each.items()} for each in (net.state_dict(), tensors))
    refuse_misfit(ours, theirs, [*ours, *theirs], complaint)
    net.load_state_dict(tensors)


def refuse_misfit(ours: Mapping[str, tuple], theirs: Mapping[str, tuple], names: list[str], complaint: str) -> None:
    """Raises `UserError`, `complaint` and the first of `names` whose shape in the file is not that in the network."""
    for name in names:
        mine, other = ours.get(name, "absent"), theirs.get(name, "absent")
        if mine != other:
            raise UserError(f"{complaint}: {name} is {_shape(other)} in the file and {_shape(mine)} in the network.")


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors writes them: in main memory, in one piece, and none sharing another's memory."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        pointer = value.untyped_storage().data_ptr()
        result[name] = value.clone() if pointer in seen else value  # tied weights share theirs
        seen.add(pointer)
    return result


def _shape(shape: tuple[int, ...] | str) -> str:
    return shape if isinstance(shape, str) else " x ".join(map(str, shape)) or "one number"


def _named(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in net.state_dict().items()}


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """Of names and bytes, in any order of the names."""
    total = 0
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1).view(torch.uint8)
        total = zlib.crc32(flat.numpy(), zlib.crc32(name.encode(), total))
    return total


def files(folder: Path) -> list[Path]:
    """The files step-XXXXXXX.safetensors of `folder`, by step."""
    return sorted(folder.glob("step-*.safetensors"), key=step_of)


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of `folder`, whole or in pieces, by step."""
    return sorted([*files(folder), *folder.glob(f"step-*{sharded.SUFFIX}")], key=step_of)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it, whether or not it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """The step in the name of a file of `files`."""
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdigit() else -1
