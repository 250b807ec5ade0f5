"""The door out: tensors in [-1, 1] to PNG files and grids.

Every file appears complete or not at all, so a folder of numbered samples tells by its names what is already done.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.files import atomic_path

_GAP = 2  # pixels between the pictures of a grid
_GREY = 128  # and their value, which separates both black and white backgrounds
_VISIBLE = 64  # pixels; smaller pictures are enlarged to about this in a grid


def to_uint8(x: Tensor) -> Tensor:
    """Values in [-1, 1] to the nearest of 0..255, clamped; any shape; the inverse of `Pictures.tensor`.

    Raises `UserError` for NaN, which has no colour.
    """
    if x.isnan().any():
        raise UserError("The pictures contain NaN; the model that made them has diverged.")
    return ((x.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(x: Tensor, columns: int | None = None, upscale: int | None = None) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1] side by side, row by row: uint8 (C, height, width).

    columns: by default such that the grid is about square. upscale: each pixel becomes this many squared; by default
    the least that makes the pictures 64 pixels large.
    """
    if x.ndim != 4 or x.shape[0] == 0 or x.shape[1] not in (1, 3):
        raise UserError(f"A grid needs pictures (B, C, H, W) with 1 or 3 channels, not {tuple(x.shape)}.")
    count, channels, height, width = x.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    upscale = upscale or math.ceil(_VISIBLE / max(height, width))
    tiles = to_uint8(x.detach().cpu()).repeat_interleave(upscale, 2).repeat_interleave(upscale, 3)
    down, right = height * upscale + _GAP, width * upscale + _GAP
    canvas = torch.full((channels, math.ceil(count / columns) * down - _GAP, columns * right - _GAP), _GREY)
    canvas = canvas.to(torch.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * down, i % columns * right
        canvas[:, top : top + down - _GAP, left : left + right - _GAP] = tile
    return canvas


def grid_png(x: Tensor, columns: int | None = None, upscale: int | None = None) -> bytes:
    """A `grid` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    _image(grid(x, columns, upscale)).save(buffer, "PNG")
    return buffer.getvalue()


def save_grid(x: Tensor, path: str | os.PathLike, columns: int | None = None, upscale: int | None = None) -> None:
    """Write a `grid` of pictures (B, C, H, W) in [-1, 1] to a PNG file.

    Raises `UserError` if `path` does not end in .png or cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"A grid is written as PNG; let {path} end in .png.")
    content = grid_png(x, columns, upscale)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def save_pictures(x: Tensor, folder: str | os.PathLike, start: int = 0) -> list[Path]:
    """Write pictures (B, C, H, W) in [-1, 1] as `folder/000000.png`, ..., counting from `start`; returns the paths."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UserError(f"Pictures are (B, C, H, W) with 1 or 3 channels, not {tuple(x.shape)}.")
    paths = []
    for i, picture in enumerate(to_uint8(x.detach().cpu()), start=start):
        path = Path(folder) / f"{i:06d}.png"
        with atomic_path(path) as temporary:
            _image(picture).save(temporary, "PNG")
        paths.append(path)
    return paths


def saved_numbers(folder: str | os.PathLike) -> set[int]:
    """The numbers of the pictures that `save_pictures` has completed in `folder`."""
    return {int(path.stem) for path in Path(folder).glob("*.png") if path.stem.isdecimal()}


def _image(pixels: Tensor):
    """A PIL picture from uint8 (1 or 3, H, W)."""
    from PIL import Image

    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy())
