"""A user's own feature network, from a TorchScript or torch.export file.

Such a file is a program: load only one that you trust. What torch 2.13 does with it:

* TorchScript (`torch.jit.load`) is read and run by torch's C++ interpreter, whose own unpickler knows tensors and
  TorchScript types and calls no Python. Its operators may still read and write files.
* torch.export (`torch.export.load`) rebuilds a graph of tensor operators. It falls back to Python's pickle for
  sample inputs that the restricted reader refuses, for tensor subclasses and for opaque objects; a file that would
  need this, or that carries a compiled library, is refused here before torch sees it. Size expressions and guards
  stored in the file are evaluated as Python all the same, which torch offers no way to switch off.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from backdrift.errors import UserError

# The TorchScript translation of the network of Heusel et al. 2017 that NVIDIA published with StyleGAN2-ADA as
# inception-2015-12-05.pt. It takes 8-bit RGB, resizes by itself and returns 2,048 features on request.
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"

_WANTED = "a TorchScript file (torch.jit.save) or a torch.export file (torch.export.save)"


class ExportedFeatures:
    """The network in a file as an extractor: float32 (B, C, H, W) in [-1, 1] -> (B, F), further axes flattened.

    `inception` is true when the file's SHA-256 is that of the published Inception network, and only then is a Fréchet
    distance called "FID": a file name or a statement proves nothing, the weights do. That network is given the
    8-bit RGB that it expects. The same weights exported anew are named after their file.

    Raises `UserError` when the file is missing or is something else (a pickled model, a state dict), and when the
    network does not map a batch of pictures to finite features.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"There is no feature network {self.path}; give the path of {_WANTED}.")
        self.inception = hashlib.sha256(self.path.read_bytes()).hexdigest() == INCEPTION_SHA256
        self.name = "Inception" if self.inception else self.path.stem
        self._network = _load(self.path)

    def __call__(self, pictures: Tensor) -> Tensor:
        try:
            if self.inception:
                features = self._network(_eight_bit_rgb(pictures), return_features=True)
            else:
                features = self._network(pictures.float())
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"The feature network {self.path} failed on pictures of shape {tuple(pictures.shape)} ({reason}); "
                "export it for this picture size with a batch axis of any length."
            ) from error
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(pictures):
            raise UserError(
                f"The feature network {self.path} must return one tensor of shape (batch, features) for a batch."
            )
        if not features.isfinite().all():
            raise UserError(f"The feature network {self.path} returned values that are not finite.")
        return features.flatten(1)


def _eight_bit_rgb(pictures: Tensor) -> Tensor:
    if pictures.shape[1] not in (1, 3):
        raise UserError(f"Inception needs grey or RGB pictures, but these have {pictures.shape[1]} channels.")
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def _load(path: Path) -> torch.nn.Module:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            scripted = any(name.endswith("/constants.pkl") for name in names)
            if not scripted and any(
                name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names
            ):
                _refuse_code(path, archive)
                return torch.export.load(path).module()
        if scripted:
            return torch.jit.load(path, map_location="cpu").eval()
    except UserError:
        raise
    except Exception as error:  # torch raises nearly every type on a damaged file
        raise UserError(f"The feature network {path} cannot be read; it should be {_WANTED}.") from error
    raise UserError(f"{path} is not a feature network that can be loaded without running its pickle; give {_WANTED}.")


def _refuse_code(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse a torch.export archive whose loading would call Python's pickle or open a compiled library."""
    for name in archive.namelist():
        bad = "aotinductor" in name and not name.endswith("/")
        if name.endswith("_config.json"):
            entries = json.loads(archive.read(name)).get("config", {}).values()
            bad = any(e.get("use_pickle") or not e["path_name"].startswith(("weight_", "tensor_")) for e in entries)
        elif name.endswith(".pt") and (content := archive.read(name)):
            try:
                torch.load(io.BytesIO(content), weights_only=True)
            except pickle.UnpicklingError:
                bad = True
        if bad:
            raise UserError(f"The feature network {path} holds code besides its graph ({name}); export it without.")
