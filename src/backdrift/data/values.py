"""Measured pictures, whose numbers mean something: 16-bit PNG and TIFF, .npy, NIfTI, DICOM in; the same units out.

Nothing is cut to 8 bits. A `Window` says which values are -1 and 1 for the model; what leaves it goes beyond, and is
put back into the file's units on output. NIfTI and DICOM need the extra "medical", and so does TIFF of several pages.
DICOM values are what the file's slope and intercept make of them, for CT Hounsfield units.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.files import atomic_path

KINDS = (".png", ".tif", ".tiff", ".npy", ".nii", ".gz", ".dcm")


@dataclass(frozen=True)
class Window:
    """The values that are -1 and 1 for the model. Raises `UserError` unless low < high."""

    low: float
    high: float

    def __post_init__(self):
        if not self.low < self.high:
            raise UserError(f"A window goes from a lower value to a higher one, not from {self.low} to {self.high}.")

    @property
    def scale(self) -> float:
        """The file's units in one of the model's."""
        return (self.high - self.low) / 2

    def inside(self, values: Tensor) -> Tensor:
        """The file's values in the model's units."""
        return (values - self.low) / self.scale - 1

    def restore(self, x: Tensor) -> Tensor:
        """The model's values in the file's units."""
        return (x + 1) * self.scale + self.low


# Hounsfield units, as radiology displays them: (level - width / 2, level + width / 2)
HOUNSFIELD = {
    "lung": Window(-1350.0, 150.0),
    "soft": Window(-160.0, 240.0),
    "liver": Window(-45.0, 105.0),
    "brain": Window(0.0, 80.0),
    "bone": Window(-450.0, 1050.0),
    "body": Window(-1024.0, 1024.0),
}


@dataclass(frozen=True)
class Values:
    """An array of a file in its own units.

    data: float32, any shape, pictures as (C, H, W). full: the window of the whole range that the file's numbers can
    take, None where they have none (floats, Hounsfield units).
    """

    data: Tensor
    full: Window | None


def read_values(path: str | os.PathLike, part: int | None = None) -> Values:
    """A file's numbers, with no change but that of the file's own scale.

    part: of a volume, the slice along the last axis of a NIfTI or the page of a TIFF; the middle one by default.

    Raises `UserError` for a missing or damaged file, another format, missing values, or an extra that is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{path.name} is in no format that is read here: PNG, TIFF, .npy, NIfTI (.nii.gz) or DICOM.")
    try:
        data, full = _reader(path)(path, part)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}.") from error
    if not np.isfinite(data).all():
        raise UserError(f"{path} has infinite or missing values.")
    return Values(torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)), full)


def _reader(path: Path):
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _nifti
    readers = {".png": _raster, ".tif": _raster, ".tiff": _raster, ".npy": _array, ".dcm": _dicom}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path.name} is compressed, and only NIfTI (.nii.gz) may be.")
    return readers[path.suffix.lower()]


def _chosen(count: int, part: int | None, path: Path) -> int:
    part = count // 2 if part is None else part
    if not 0 <= part < count:
        raise UserError(f"{path.name} has slices 0 to {count - 1}, so there is no slice {part}.")
    return part


def _raster(path: Path, part: int | None):
    from PIL import Image

    with Image.open(path) as image:
        image.seek(_chosen(getattr(image, "n_frames", 1), part, path))
        if image.mode in ("P", "RGBA", "LA", "1", "CMYK"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        mode, pixels = image.mode, np.array(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    # floats and 32-bit integers have no range of their own
    full = {1: Window(0, 255), 2: Window(0, 65535)}.get(pixels.dtype.itemsize)
    # a 16-bit PNG may be opened with 32-bit pixels
    if mode == "I" and path.suffix.lower() == ".png":
        full = Window(0, 65535)
    return pixels.transpose(2, 0, 1), full


def _array(path: Path, part: int | None):
    data = np.load(path, allow_pickle=False)
    if not (np.issubdtype(data.dtype, np.floating) or np.issubdtype(data.dtype, np.integer)):
        raise UserError(f"{path.name} holds {data.dtype}, not numbers.")
    return data, {np.dtype("uint8"): Window(0, 255), np.dtype("uint16"): Window(0, 65535)}.get(data.dtype)


def _need(package: str):
    """The package of the extra "medical". Raises `UserError` that names it where it is missing."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"This needs {package}, which cannot be imported; pip install 'backdrift[medical]'.") from error


def _nifti(path: Path, part: int | None):
    volume = np.asarray(_need("nibabel").load(path).dataobj, dtype=np.float32)
    while volume.ndim > 3:
        volume = volume[..., 0]
    picture = volume if volume.ndim == 2 else volume[..., _chosen(volume.shape[2], part, path)]
    # the first axis of NIfTI runs to the patient's right or left, the second to the front
    return picture.T[::-1][None].copy(), None


def _dicom(path: Path, part: int | None):
    data = _need("pydicom").dcmread(path)
    pixels = data.pixel_array.astype(np.float32)
    if pixels.ndim != 2:
        raise UserError(f"{path.name} holds an array {pixels.shape}, not one grey picture.")
    slope, intercept = float(getattr(data, "RescaleSlope", 1)), float(getattr(data, "RescaleIntercept", 0))
    return (pixels * slope + intercept)[None], None


def write_values(values: Tensor, path: str | os.PathLike) -> None:
    """Write numbers (C, H, W), in their own units: float32 in .npy and .tif, rounded to 16 bits in .png.

    Raises `UserError` for another format, and for numbers that 16 bits cannot hold.
    """
    from PIL import Image

    path, data = Path(path), values.detach().cpu().float().numpy()
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, data)
        return
    if data.ndim != 3 or len(data) != 1 or suffix not in (".png", ".tif", ".tiff"):
        raise UserError(f"{path.name}: .npy holds any array, and .png and .tif one grey picture (1, H, W).")
    if suffix == ".png":
        rounded = np.rint(data[0])
        if rounded.min() < 0 or rounded.max() > 65535:
            raise UserError(f"{path.name} would need numbers outside 0 to 65535; write .npy or .tif.")
        image = Image.fromarray(rounded.astype(np.uint16))
    else:
        image = Image.fromarray(data[0])
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG" if suffix == ".png" else "TIFF")
