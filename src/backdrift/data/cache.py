"""Pictures decoded once into a file that is mapped into memory, for sets that are too many to decode or hold each time.

Training then reads just the pictures of a batch; what was read stays in the system's file cache while there is room,
and all processes of a machine share it. A cache is a folder,

    NAME-KEY/pixels-K.npy    uint8 (N, C, H, W)
    NAME-KEY/index.npz       which pictures could be decoded, and the `Census` of all
    NAME-KEY/about.json      what it was made of

whose key is a hash of the source's path, of how its pictures are read, and of the names, sizes and times of its files.
So a source that changes gets another folder, and the stale one is removed. A folder appears whole, under its last
name; where several processes want it at once, one builds it and the others wait. Pixels are not read through again when
a cache is opened: whoever changes them by hand is not found out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backdrift.data.census import Census
from backdrift.errors import UserError
from backdrift.files import write_json

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows `at` of an array on disk (M, C, H, W); like a tensor, but nothing is read before it is asked for."""

    array: np.ndarray
    at: Tensor

    dtype = torch.uint8
    ndim = 4

    def __len__(self) -> int:
        return len(self.at)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.at), *self.array.shape[1:]))

    def __getitem__(self, indices) -> Tensor:
        """The rows at these places, read into memory: uint8 (B, C, H, W)."""
        return torch.from_numpy(np.take(self.array, self.at[indices].numpy(), axis=0))

    def take(self, positions: Tensor) -> Rows:
        """The rows at these places, not read."""
        return Rows(self.array, self.at[positions])


@dataclass(frozen=True, eq=False)
class Decoded:
    """pixels: of the pictures that could be decoded. good: their positions in the listing."""

    pixels: Rows
    good: list[int]
    census: Census


Build = Callable[[Callable[[tuple[int, ...]], np.ndarray]], tuple[np.ndarray, list[int]]]


def cached(folder: Path, path: Path, names: Sequence[str], choices: dict, build: Build) -> Decoded:
    """The pictures of the source `path`, from the cache in `folder`, built where it is missing or stale.

    names: of the pictures in the source. choices: JSON-able, all that decides the pixels. build: decodes, given a
    function that makes an array on disk from its shape; returns that array (or a later one) and the positions decoded.

    Raises `UserError` where the folder cannot be written, and what `build` raises.
    """
    what = {"format": FORMAT, "path": str(path), "choices": choices}
    about = {**what, "source": _stamp(path, names)}
    home = folder / f"{path.stem}-{_hash(json.dumps(about, sort_keys=True).encode())}"
    if not (home / "about.json").exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if not (home / "about.json").exists():
                    _make(folder, home, about, build)
                    _remove_stale(folder, home, what)
        except OSError as error:
            raise UserError(f"The cache in {folder} cannot be written: {error.strerror or error}.") from error
    return _open(home)


def _make(folder: Path, home: Path, about: dict, build: Build) -> None:
    building = Path(tempfile.mkdtemp(dir=folder, prefix=".building-"))
    try:
        made = []

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            made.append(building / f"pixels-{len(made)}.npy")
            return np.lib.format.open_memmap(made[-1], mode="w+", dtype=np.uint8, shape=shape)

        pixels, good = build(allocate)
        if not good:
            raise UserError(f"No picture in {about['path']} could be read.")
        kept = Path(pixels.filename)
        pixels.flush()
        census = Census.of(pixels)
        for other in set(made) - {kept}:
            other.unlink()
        np.savez(building / "index.npz", good=np.array(good), digests=census.digests, sums=census.sums)
        write_json(building / "about.json", {**about, "pixels": kept.name})
        os.chmod(building, 0o755)
        if home.exists():  # half of one that someone took apart
            shutil.rmtree(home)
        os.replace(building, home)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _open(home: Path) -> Decoded:
    try:
        about = json.loads((home / "about.json").read_text(encoding="utf-8"))
        array = np.load(home / about["pixels"], mmap_mode="r", allow_pickle=False)
        with np.load(home / "index.npz", allow_pickle=False) as index:
            good, census = index["good"], Census(index["digests"], index["sums"])
        if not len(array) == len(good) == len(census.digests) == len(census.sums):
            raise ValueError("its files do not fit each other")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"The cache {home} is damaged ({error}); remove that folder, and it is made again.") from error
    return Decoded(Rows(array, torch.arange(len(array))), good.tolist(), census)


def _remove_stale(folder: Path, home: Path, what: dict) -> None:
    """Remove the caches of the same source and choices at another time, and what a killed process left."""
    for other in folder.iterdir():
        if other.name.startswith(".building-"):
            shutil.rmtree(other, ignore_errors=True)
        if other == home or not (other / "about.json").exists():
            continue
        about = json.loads((other / "about.json").read_text(encoding="utf-8"))
        if {name: about.get(name) for name in what} == what:
            shutil.rmtree(other, ignore_errors=True)


def _stamp(path: Path, names: Sequence[str]) -> str:
    """A hash of the names, sizes and times of the files that pictures are read from."""
    digest = hashlib.blake2b(digest_size=16)
    files = [path / name for name in names] if path.is_dir() else [path]
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the others wait. The lock goes with its process."""
    try:
        import fcntl
    except ImportError:  # a system without such locks goes without: the last to finish wins
        yield
        return
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
