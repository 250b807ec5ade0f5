"""A checkpoint in pieces: every process writes what it holds, and any number of processes can read it.

`torch.distributed.checkpoint` writes one safetensors file per process, which says where each piece lies in its tensor,
and reads from them whatever part of a tensor a process holds, at any number of processes. Beside them `checkpoint.json`
has the step, the shapes and a checksum of every file. The folder gets its name when all of it is on disk.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.files import write_json
from backdrift.train.distributed import World

SUFFIX = ".sharded"
HEADER = "checkpoint.json"


def storage():
    """torch's writer and reader of safetensors in pieces. Raises `UserError` where this torch has none."""
    try:
        from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
    except ImportError as error:
        raise UserError(
            f"PyTorch {torch.__version__} cannot write or read sharded checkpoints; install a newer one."
        ) from error
    return HuggingFaceStorageWriter, HuggingFaceStorageReader


def save(path: Path, step: int, tensors: Mapping[str, Tensor], world: World) -> None:
    """Write the folder `path`; every process calls this with its own pieces. Raises `UserError` where it cannot."""
    from torch.distributed.checkpoint import save as write_pieces
    from torch.distributed.checkpoint.api import CheckpointException

    writer, _ = storage()
    temporary = path.with_name(f".{path.name}")
    if world.first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.told(None)  # a folder that is there for all
    try:
        write_pieces(dict(tensors), storage_writer=writer(str(temporary), save_distributed=True))
    except CheckpointException as error:
        reasons = [str(reason) for reason, _ in error.failures.values()]
        raise UserError(f"The checkpoint {path} could not be written: {reasons[0]}.") from error
    pieces = sorted(temporary.iterdir())[world.rank :: world.size]
    sums = world.everyone({piece.name: checksum(piece) for piece in pieces})
    if world.first:
        shapes = {name: list(x.shape) for name, x in tensors.items()}
        files = {name: value for each in sums for name, value in each.items()}
        write_json(temporary / HEADER, {"step": step, "files": files, "shapes": shapes})
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)


def verified(path: Path) -> tuple[int, dict[str, tuple[int, ...]]]:
    """The step, and the shapes of the tensors by name. Raises `ValueError` and kin for a folder that is not whole."""
    header = json.loads((path / HEADER).read_text(encoding="utf-8"))
    for name, expected in header["files"].items():
        if checksum(path / name) != expected:
            raise ValueError(f"the checksum of {name} does not match")
    return header["step"], {name: tuple(shape) for name, shape in header["shapes"].items()}


def fill(path: Path, targets: Mapping[str, Tensor]) -> None:
    """Read the tensors of these names into `targets`, in place; of a sharded one what this process holds."""
    from torch.distributed.checkpoint import load as read_pieces

    _, reader = storage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it reads alone, which is meant: nothing travels
        read_pieces(dict(targets), storage_reader=reader(str(path)), no_dist=True)


def checksum(file: Path) -> int:
    """Of the bytes of a file."""
    total = 0
    with open(file, "rb") as opened:
        while block := opened.read(1 << 22):
            total = zlib.crc32(block, total)
    return total
