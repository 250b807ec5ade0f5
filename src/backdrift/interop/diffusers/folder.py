"""The folders that diffusers writes, and their weights.

A pipeline's folder has a model_index.json that names its parts, each in a folder of its own with a config.json; a
network's own folder has that file alone. A hub id stands for the local copy of its folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from backdrift.errors import UserError
from backdrift.interop.diffusers.networks import FAMILIES, classes_of
from backdrift.interop.extras import first_line, need
from backdrift.interop.hub import local


def is_folder(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder that diffusers wrote, rather than a run."""
    path = Path(path)
    if (path / "model_index.json").is_file():
        return True
    try:
        return "_class_name" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


_LISTED = [[name] for name in FAMILIES]  # as the last word of an entry of model_index.json


@dataclass(frozen=True)
class Parts:
    """What a folder holds. network, autoencoder: folders. family: the network's class; config: its arguments."""

    network: Path
    family: str
    config: Mapping
    scheduler: Mapping
    autoencoder: Path | None
    names: Mapping[str, str]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels: those that the folder gives, or their numbers; () for a network without."""
        count = classes_of(self.family, self.config)
        return tuple(self.names.get(str(n), str(n)).split(",")[0] for n in range(count))

    @classmethod
    def find(cls, folder: str | os.PathLike, scheduler: Mapping | str | os.PathLike | None = None) -> Parts:
        """Raises `UserError` for a folder without a network that can be a denoiser, or without a scheduler."""
        path = local(folder)
        network = path
        if (path / "model_index.json").is_file():
            listed = read_json(path / "model_index.json")
            found = [name for name, value in listed.items() if isinstance(value, list) and value[-1:] in _LISTED]
            if len(found) != 1:
                raise UserError(f"{path} has {len(found)} networks that can be a denoiser ({_families()}), not one.")
            network, names = path / found[0], listed.get("id2label") or {}
        else:
            names = {}
        config = read_json(network / "config.json")
        family = config.get("_class_name")
        if family == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
            family = "DiTTransformer2DModel"  # as it was called when the first ones were saved
        if family not in FAMILIES:
            raise UserError(f"{network} holds a {family!r}, which cannot be a denoiser; these can: {_families()}.")
        vae = path / "vae" if (path / "vae" / "config.json").is_file() else None
        return cls(network, family, config, scheduler_config(path, scheduler), vae, names)


def _families() -> str:
    return ", ".join(FAMILIES)


def scheduler_config(path: Path, given: Mapping | str | os.PathLike | None) -> Mapping:
    if isinstance(given, Mapping):
        return given
    places = [path / "scheduler", path, path.parent / "scheduler"] if given is None else [Path(given)]
    for place in places:
        file = place if place.is_file() else place / "scheduler_config.json"
        if file.is_file():
            return read_json(file)
    raise UserError(f"{places[0]} holds no scheduler_config.json, which says how the network was trained.")


def read_json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is missing or cannot be read as a diffusers config.") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is not a diffusers config.")
    return found


def pretrained(folder: Path, family: str) -> nn.Module:
    """The module with its weights, all of which must be there and fit."""
    cls = getattr(need("diffusers", "diffusers"), family)
    try:
        net, report = cls.from_pretrained(
            str(folder), use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        raise UserError(f"{folder} holds no {family} that can be loaded: {first_line(error)}.") from error
    for words, key in (("lacks", "missing_keys"), ("has the unknown", "unexpected_keys")):
        if report.get(key):
            raise UserError(f"The checkpoint in {folder} {words} weight {sorted(report[key])[0]}.")
    return net
