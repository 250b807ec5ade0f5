"""Pictures in a NumPy file: what the numbers mean is worked out from the array, and refused where it is in doubt.

Layout: (N, H, W) is grey, unless it could be one picture with channels; in (N, a, b, c) the axis of length 1, 3 or 4
is the channels, and that must be one of a and c.
Values: uint8 is 0..255; floats that never leave [0, 1] are taken as that, floats with negative values in [-1, 1] as
that. What was assumed is written into the pictures' source. Nothing pickled is ever loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from backdrift.data import labels
from backdrift.data.listing import Listing
from backdrift.data.pictures import check_memory
from backdrift.errors import UserError

_CHANNELS = (1, 3, 4)
_IMAGES = ("images", "x", "arr_0")
_LABELS = ("labels", "y")


def read(path: Path) -> Listing:
    """Read a `.npy`, or a `.npz` with `images` (or `x`, or `arr_0`), optionally `labels` (or `y`) and `classes`.

    Raises `UserError` if the file is damaged, or the meaning of its numbers is in doubt.
    """
    try:
        arrays = _load(path)
    except UserError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a readable NumPy file ({error}).") from None
    images = _first(arrays, *_IMAGES)
    if images is None:
        raise UserError(f"{path} holds no array called images, x or arr_0.")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise UserError(f"{path} has shape {images.shape}; pictures need (N, H, W), (N, H, W, C) or (N, C, H, W).")
    axis = _channel_axis(images.shape, path)
    offset, scale, values = _range(images, path)
    found, classes = None, ()
    column = _first(arrays, *_LABELS)
    if column is not None:
        names = tuple(str(name) for name in np.ravel(arrays.get("classes", ())))
        found, classes = labels.from_integers(column, len(images), str(path), names)

    def open_picture(i: int):
        from PIL import Image

        picture = images[i] if images.ndim == 3 else np.moveaxis(images[i], axis - 1, -1)
        if scale != 1 or offset != 0:
            picture = np.rint((np.asarray(picture, dtype=np.float64) + offset) * scale)
        picture = picture.astype(np.uint8)
        return Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else np.ascontiguousarray(picture))

    layout = "(N, H, W)" if images.ndim == 3 else "(N, C, H, W)" if axis == 1 else "(N, H, W, C)"
    names = [f"{path.stem} {i}" for i in range(len(images))]
    return Listing(names, open_picture, found, classes, assumed=f"{layout}, {values}")


def _load(path: Path) -> dict[str, np.ndarray]:
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"images": loaded}
    with loaded:
        check_memory(sum(entry.file_size for entry in loaded.zip.infolist()), f"The arrays in {path}")
        return {name: loaded[name] for name in loaded.files if name in (*_IMAGES, *_LABELS, "classes")}


def _first(arrays: dict, *names: str) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _channel_axis(shape: tuple[int, ...], path: Path) -> int | None:
    """1 or 3, or None for three axes."""
    if len(shape) == 3:
        if shape[0] in _CHANNELS or shape[2] in _CHANNELS:
            raise UserError(
                f"{path} has shape {shape}, which could be a single picture; give grey ones as (N, H, W, 1)."
            )
        return None
    possible = [axis for axis in (1, 3) if shape[axis] in _CHANNELS]
    if len(possible) != 1:
        doubt = "either" if possible else "neither"
        raise UserError(
            f"{path} has shape {shape}, where {doubt} of the axes 1 and 3 could be the channels; give (N, H, W, C) or "
            "(N, C, H, W) with 1, 3 or 4 channels and pictures larger than that."
        )
    return possible[0]


def _range(images: np.ndarray, path: Path) -> tuple[float, float, str]:
    """(offset, scale, words): the byte is round((value + offset) * scale)."""
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(f"{path} holds {images.dtype}; convert the pictures to uint8 (0 to 255) or float in [0, 1].")
    low, high = float(images.min()), float(images.max())
    if images.dtype == np.uint8:
        if high <= 1:
            raise UserError(f"{path} holds bytes 0 and 1 only, which would be black; multiply by 255 if 1 means white.")
        return 0, 1, "uint8 in 0 to 255"
    if not (low >= -1 and high <= 1):  # also catches NaN
        raise UserError(
            f"{path} holds floats from {low:g} to {high:g}; they must lie in [0, 1] or [-1, 1], "
            "or be converted to uint8 if they are 0 to 255."
        )
    return (1, 127.5, "float in [-1, 1]") if low < 0 else (0, 255, "float in [0, 1]")
