"""Measurements by name on the command line, such as radon:20, and a user's own, my_file.py:A."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

from backdrift.cli import nearest
from backdrift.errors import UserError

OPERATORS = {  # name: (what it is, what its number is, the number by default)
    "denoise": ("the picture itself, with noise", None, None),
    "quantise": ("rounded to a few levels", "levels", 8),
    "inpaint": ("the pixels that --mask shows", None, None),
    "down": ("averages of squares", "side of a square in pixels", 2),
    "blur": ("a Gaussian blur", "its standard deviation in pixels", 1.0),
    "response": ("a blur of light through a camera's response", "the blur's standard deviation", 1.0),
    "jpeg": ("JPEG's rounded coefficients", "quality", 30),
    "clip": ("over-exposed and cut off", "gain", 2.0),
    "mri": ("some rows of the Fourier transform", "one row in so many", 4),
    "radon": ("X-rays by parallel beams all around", "views", 20),
    "limited": ("X-rays by parallel beams, one view per 3 degrees", "degrees", 90),
    "fan": ("X-rays by a fan beam", "views", 20),
    "compressed": ("random sums", "how many, as a share of the pixels", 0.25),
    "phase": ("magnitudes of the Fourier transform", "oversampling", 2.0),
}


def operator(word: str, shape: tuple[int, int, int], noise: float, mask=None):
    """The `Measurement` of events `shape` (C, H, W) that a word names. mask: (1, H, W) or None, for inpaint.

    Raises `UserError` for an unknown name, a number that does not fit, or a file that makes no measurement.
    """
    if ".py:" in word:
        return own(word, shape, noise)
    name, _, number = word.partition(":")
    if name not in OPERATORS:
        known = ", ".join(OPERATORS)
        raise UserError(f"There is no operator {name!r}{nearest(name, OPERATORS)}; choose {known}, or my_file.py:A.")
    meaning, default = OPERATORS[name][1:]
    if number and meaning is None:
        raise UserError(f"The operator {name} takes no number.")
    if (name == "inpaint") != (mask is not None):
        raise UserError("The operator inpaint needs a --mask, white where the picture is seen; no other takes one.")
    try:
        value = float(number) if number else default
    except ValueError:
        raise UserError(f"The operator {name}'s number is {meaning}, not {number!r}.") from None
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"The operator {name}'s number ({meaning}) is positive, not {number}.")
    return _made(name, value, shape, noise, mask)


def _made(name: str, value, shape, noise: float, mask):
    import torch

    from backdrift import inverse

    channels, height, width = shape
    turn = math.pi / max(1, round(value or 1))
    makers: dict[str, Callable] = {
        "denoise": lambda: inverse.Identity(shape, noise),
        "quantise": lambda: inverse.Identity(shape, inverse.RoundedNoise(2 / value, noise)),
        "inpaint": lambda: inverse.Inpaint((mask > 0.5).float(), noise, shape),
        "down": lambda: inverse.Downsample(_whole(name, value), shape, noise),
        "blur": lambda: inverse.Blur(_kernel(value, shape), shape, noise),
        "response": lambda: inverse.ResponseBlur(_kernel(value, shape), shape, noise),
        "jpeg": lambda: inverse.JPEG(shape, _whole(name, value), noise),
        "clip": lambda: inverse.Clip(shape, noise, gain=value),
        "mri": lambda: inverse.FourierSamples(rows_seen(height, width, value), shape, noise),
        "radon": lambda: inverse.Radon(turn * torch.arange(_whole(name, value)), shape, noise),
        "limited": lambda: inverse.Radon(torch.deg2rad(torch.arange(0.0, value, 3.0)), shape, noise),
        "fan": lambda: inverse.Radon(
            2 * turn * torch.arange(_whole(name, value)), shape, noise, round(1.5 * width), 1.5 * width
        ),
        "compressed": lambda: inverse.compressed(shape, round(value * channels * height * width), noise),
        "phase": lambda: inverse.PhaseRetrieval(shape, noise, value),
    }
    return makers[name]()


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise UserError(f"The operator {name} takes a whole number, not {value:g}.")
    return int(value)


def _kernel(std: float, shape):
    """A Gaussian kernel that a picture of this shape can hold."""
    from backdrift.inverse import gaussian_kernel

    return gaussian_kernel(std, min(max(1, round(3 * std)), (min(shape[1:]) - 1) // 2))


def rows_seen(height: int, width: int, factor: float):
    """A mask (H, W) over frequencies: a third of one row in `factor` lies at the centre, the rest anywhere, seed 0."""
    import torch

    from backdrift.noise import Noise

    count = max(1, round(height / factor))
    order = torch.arange(height).sub(height // 2).abs().argsort(stable=True)
    order = torch.arange(height)[order] - height // 2
    centre, rest = order[: max(1, count // 3)], order[max(1, count // 3) :]
    pick = Noise.of(0, 1).at("rows").uniform(torch.empty(1, len(rest)))[0].argsort()[: count - len(centre)]
    mask = torch.zeros(height, width)
    mask[torch.cat([centre, rest[pick]]) % height] = 1
    return mask


def own(word: str, shape: tuple[int, int, int], noise: float):
    """The measurement that a file makes: `A(event_shape, noise)`, or an object `A` that is one already.

    Raises `UserError` where there is no such file or name, or what it makes is no measurement.
    """
    from backdrift.inverse import Measurement

    path, _, name = word.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"backdrift_user_{Path(path).stem}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(f"The operator's file {path} is missing or is no Python file (.py).")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} fails when it is run: {type(error).__name__}: {error}.") from error
    made = getattr(module, name, None)
    if made is None:
        raise UserError(f"{path} defines no {name}.")
    if not isinstance(made, Measurement):
        try:
            made = made(shape, noise)
        except TypeError as error:
            raise UserError(f"{name} must accept {name}({shape}, {noise}): {error}.") from error
    if not isinstance(made, Measurement):
        raise UserError(f"{path}:{name} must make a bd.inverse.Measurement, not a {type(made).__name__}.")
    return made
