"""From files to bytes: each picture upright, on an opaque background, in RGB, of one size.

Threads decode, each filling rows of one array; a picture exists twice in memory only while it is being decoded. Very
small pictures are left to a single thread: most of their time goes to Python, where threads only get in each other's
way. Decoders raise almost anything on damaged files, so any exception of theirs means "broken".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from backdrift.data.listing import Listing
from backdrift.errors import UserError

_CHUNK = 64  # pictures per task
_PROBES = 50  # headers read before the work starts
_SMALL = 128 * 128  # pixels up to which one thread is faster than several
_ORIENTATION = 0x0112  # EXIF: values 5 to 8 turn the picture by a quarter
_OPAQUE = ("L", "RGB", "CMYK", "YCbCr", "1")


class Broken(Exception):
    """A picture that cannot be decoded."""


def decode(
    listed: Listing,
    size: tuple[int, int] | None,
    fit,
    background: tuple[int, int, int],
    skip_broken: bool,
    channels: int | None,
    allocate: Callable[[tuple[int, ...]], np.ndarray],
    on_progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, list[int]]:
    """(pixels uint8 (n, C, H, W), positions of the n pictures that could be decoded).

    size: (H, W), or None for the pictures' own. fit: an object with `apply(image, height, width)`, or None, in which
    case all pictures must be of one size with the proportions of `size`. channels: 1, 3, or None for 1 where every
    picture is grey. allocate: makes an array of uint8, in memory or on disk, from its shape.

    Raises `UserError` for a broken picture (unless skipped) and for sizes that need a fit, and what `allocate` raises.
    """
    total = len(listed.names)
    probed = _probe(listed, range(0, total, -(-total // _PROBES)), same=fit is None)
    own = None if fit else probed
    height, width = size or own
    if own and own[0] * width != own[1] * height:
        raise UserError(
            f"The pictures are {own[1]} wide and {own[0]} high and would be distorted at {width} by {height}; "
            "choose a fit: Crop(), Pad(colour) or Stretch()."
        )
    pixels = allocate((total, 3, height, width))

    def work(start: int) -> list[int]:
        positions = range(start, min(start + _CHUNK, total))
        return [i for i in positions if one(i)]

    def one(i: int) -> bool:
        try:
            with _open(listed, i) as image:
                pixels[i] = _rgb(image, height, width, fit, own, background, listed.names[i])
        except Broken as error:
            if not skip_broken:
                raise UserError(f"{error}; replace or remove it, or choose skip_broken to go on without.") from None
            return False
        return True

    good: list[int] = []
    pool = ThreadPoolExecutor(1 if probed[0] * probed[1] <= _SMALL else min(8, os.cpu_count() or 1))
    try:
        for done, found in enumerate(pool.map(work, range(0, total, _CHUNK)), start=1):
            good += found
            if on_progress:
                on_progress(min(done * _CHUNK, total), total)
    finally:
        pool.shutdown(cancel_futures=True)
    return _kept(pixels, good, channels, allocate), good


def _kept(pixels: np.ndarray, good: list[int], channels: int | None, allocate) -> np.ndarray:
    """The good ones of (N, 3, H, W), with one channel where that is chosen or enough: `pixels`, or another array."""
    if not good:
        return pixels[:0]
    chunks = [slice(low, low + _CHUNK) for low in range(0, len(good), _CHUNK)]
    grey = channels != 3 and all(_grey(pixels[good[chunk]]) for chunk in chunks)
    kept = 1 if channels == 1 or grey else 3
    if kept == 3 and len(good) == len(pixels):
        return pixels
    result = allocate((len(good), kept, *pixels.shape[2:]))
    for chunk in chunks:
        rows = pixels[good[chunk]]
        result[chunk] = rows[:, :kept] if kept == 3 or grey else _luma(rows)
    return result


def _grey(pixels: np.ndarray) -> bool:
    return bool((pixels[:, 0] == pixels[:, 1]).all() and (pixels[:, 0] == pixels[:, 2]).all())


def _luma(pixels: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) to (N, 1, H, W): luma of ITU-R BT.601."""
    weights = np.array([299, 587, 114], dtype=np.uint32)  # in thousandths
    return ((np.einsum("c,nchw->nhw", weights, pixels.astype(np.uint32)) + 500) // 1000).astype(np.uint8)[:, None]


def _open(listed: Listing, i: int):
    from PIL import Image

    try:
        return listed.open(i)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{listed.names[i]} has more pixels than any picture should (a decompression bomb?).") from None
    except Exception as error:
        raise Broken(_reason(listed.names[i], error)) from None


def _rgb(image, height: int, width: int, fit, own, background: tuple[int, int, int], name: str) -> np.ndarray:
    """Decode an opened picture: uint8 (3, H, W)."""
    from PIL import Image, ImageOps

    try:
        turned, found = _upright(image)
        if own and found != own:
            raise _mixed(name, found, own)
        if min(found) > 2 * max(height, width):
            # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; twice the wanted one leaves the filter its work
            image.draft(None, (2 * max(height, width),) * 2)
        image = opaque(ImageOps.exif_transpose(image) if turned else image, background)
        if fit:
            image = fit.apply(image, height, width)
        elif image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        return np.asarray(image).transpose(2, 0, 1)
    except UserError:
        raise
    except Exception as error:
        raise Broken(_reason(name, error)) from None


def _upright(image) -> tuple[bool, tuple[int, int]]:
    """(whether the EXIF orientation asks for a turn or flip, the (height, width) after it)."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    return orientation != 1, image.size if orientation in (5, 6, 7, 8) else image.size[::-1]


def opaque(image, background: tuple[int, int, int]):
    """Any PIL picture as RGB: palettes resolved, 16 bits to 8 over the full range, transparency over `background`.

    Raises `ValueError` for pixels whose range is not known.
    """
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels outside 0 to 65535")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in _OPAQUE and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def _probe(listed: Listing, positions, same: bool) -> tuple[int, int]:
    """The (height, width) in the headers at `positions`, refused if they differ and must be the `same`.

    Broken pictures are passed over: they are named when their turn to be decoded comes.
    """
    first = None
    for i in positions:
        try:
            with _open(listed, i) as image:
                found = _upright(image)[1]
        except Exception:
            continue
        if same and first and found != first:
            raise _mixed(listed.names[i], found, first)
        first = first or found
    if first is None:
        raise UserError(f"{listed.names[0]} is broken or no picture, and so are all others that were tried.")
    return first


def _mixed(name: str, found: tuple[int, int], own: tuple[int, int]) -> UserError:
    return UserError(
        f"{name} is {found[1]} by {found[0]} while others are {own[1]} by {own[0]}; "
        "choose a size and a fit: Crop(), Pad(colour) or Stretch()."
    )


def _reason(name: str, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"{name} is broken, or in a format that is not read here"
    return f"{name} is broken, or no picture that can be used ({' '.join(str(error).split()) or type(error).__name__})"
