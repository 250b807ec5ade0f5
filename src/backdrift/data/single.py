"""One picture, or one mask, from a file: what editing starts from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backdrift.data.decode import opaque
from backdrift.data.fit import Crop, Pad, Stretch
from backdrift.errors import UserError


def read_picture(
    path: str | os.PathLike,
    shape: tuple[int, int, int],
    fit: Crop | Pad | Stretch | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Tensor:
    """A picture file as (C, H, W) in [-1, 1], grey for C = 1.

    fit: what to do with another size; without it, the size must be right. background: behind transparent pixels.

    Raises `UserError` where the file is no picture, or has another size.
    """
    image = _fitted(opaque_picture(path, background), path, shape, fit)
    pixels = np.asarray(image.convert("L") if shape[0] == 1 else image, dtype=np.float32)
    return torch.from_numpy(pixels.reshape(*shape[1:], shape[0]).transpose(2, 0, 1) / 127.5 - 1)


def read_mask(path: str | os.PathLike, shape: tuple[int, int, int], fit: Crop | Stretch | None = None) -> Tensor:
    """A picture file as a mask (1, H, W) in [0, 1]: white is 1. Raises as `read_picture` does."""
    image = _fitted(opaque_picture(path, (255, 255, 255)), path, shape, fit)
    return torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32)[None] / 255)


def opaque_picture(path: str | os.PathLike, background: tuple[int, int, int]):
    """An upright RGB picture from a file. Raises `UserError` where it is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return opaque(ImageOps.exif_transpose(image), background)
    except FileNotFoundError:
        raise UserError(f"There is no picture {path}.") from None
    except Exception as error:
        raise UserError(f"{path} cannot be read as a picture: {error}.") from error


def _fitted(image, path: str | os.PathLike, shape: tuple[int, int, int], fit):
    height, width = shape[1:]
    if fit is not None:
        return fit.apply(image, height, width)
    if image.size != (width, height):
        raise UserError(
            f"{Path(path).name} is {image.width} x {image.height} pixels and the model's pictures are {width} x "
            f"{height}; resize it, or choose a fit (crop, pad or stretch)."
        )
    return image
