"""Checkpoints: all that a training needs to go on as if it had never stopped, in one safetensors file each.

The file holds the weights, their average, the optimiser's moments, torch's random state and the open window of the
metrics; its metadata hold the step (which is also the data position) and a checksum of everything. It appears whole or
not at all, the last two are kept, and a damaged one is skipped. Nothing is pickled.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backdrift.errors import UserError
from backdrift.files import atomic_path

KEPT = 2
_BROKEN = (SafetensorError, OSError, ValueError, KeyError)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> Path:
    """Write `folder`/step-XXXXXXX.safetensors; older files beyond the last two go, and any of later steps."""
    tensors = on_cpu(tensors)
    path = folder / f"step-{step:07d}.safetensors"
    write(path, tensors, {"checkpoint": json.dumps({"step": step, "checksum": _checksum(tensors)})})
    files = _files(folder)
    kept = [file for file in files if _step(file) <= step][-KEPT:]
    for file in set(files) - set(kept):
        file.unlink(missing_ok=True)
    return path


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
    if _checksum(tensors) != header["checksum"]:
        raise ValueError("its checksum does not match")
    return header["step"], tensors


def latest(folder: Path) -> tuple[tuple[int, dict[str, Tensor]] | None, list[str]]:
    """The newest checkpoint that can be read, or None where there are none, and notices of those that cannot.

    Raises `UserError` where there are some and none can be read.
    """
    notices = []
    for path in reversed(_files(folder)):
        try:
            found = load(path)
        except _BROKEN as error:
            notices.append(f"The checkpoint {path.name} is damaged ({error}), so the one before it is used.")
        else:
            return found, notices
    if notices:
        raise UserError(f"No checkpoint in {folder} can be read; remove that folder to train from the beginning.")
    return None, []


def pack(net: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of a training, by name."""
    moments = {
        f"optimiser.{name}.{key}": value
        for name, parameter in net.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
    return {**_named("net", net), **_named("average", averaged), **moments}


def unpack(
    tensors: Mapping[str, Tensor], net: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """The inverse of `pack`, in place. Raises `UserError` naming the first tensor that does not fit."""
    put(_under(tensors, "net."), net, "The checkpoint does not fit the network of this config")
    put(_under(tensors, "average."), averaged, "The checkpoint's average does not fit the network of this config")
    for name, parameter in net.named_parameters():
        moments = _under(tensors, f"optimiser.{name}.")
        if moments:
            # copied: the tensors read are windows into the file
            optimiser.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in moments.items()}


def put(tensors: Mapping[str, Tensor], net: nn.Module, complaint: str) -> None:
    """Copy named weights into `net`. Raises `UserError`, `complaint` and the first difference, if they do not fit."""
    own = net.state_dict()
    for name in [*own, *tensors]:
        mine, theirs = (tuple(x[name].shape) if name in x else "absent" for x in (own, tensors))
        if mine != theirs:
            raise UserError(f"{complaint}: {name} is {_shape(theirs)} in the file and {_shape(mine)} in the network.")
    net.load_state_dict(tensors)


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


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1).view(torch.uint8)
        total = zlib.crc32(flat.numpy(), zlib.crc32(name.encode(), total))
    return total


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), key=_step)


def _step(path: Path) -> int:
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdigit() else -1
