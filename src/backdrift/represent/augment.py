"""Views of a picture: changes that leave what it shows as it is.

Which changes these are is the whole of what an encoder is taught (Chen et al. 2020, arXiv:2002.05709, section 3): it
becomes blind to what the views differ in, and keeps the rest. An encoder that is to know where things are must not be
trained on shifted views.

Each is a function of pictures (B, C, H, W) in [-1, 1] and of keyed noise of the same B samples, so a view is the same
in any batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.noise import Noise


class Augmentation(ABC):
    """A random change of pictures; subclasses are frozen dataclasses of a `kind`."""

    @abstractmethod
    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """x (B, C, H, W) in [-1, 1] changed, in the same range, one way for each of the samples of `noise`."""


def draws(x: Tensor, noise: Noise, *shape: int) -> Tensor:
    """Uniform in (-1, 1): (B, *shape), like x."""
    return 2 * noise.uniform(x.new_empty(len(x), *shape)) - 1


@kind("augment.Move")
@dataclass(frozen=True)
class Move(Augmentation):
    """A square cut out, turned and brought back to the picture's size, by one bilinear resampling.

    smallest: its side, as a share of the picture's, is uniform from this to 1. shift: how far it may leave the
    picture, as a share of the picture's half; what lies outside repeats the border. degrees: the largest turn.
    """

    smallest: float = 0.5
    shift: float = 0.0
    degrees: float = 0.0

    def __post_init__(self):
        if not 0 < self.smallest <= 1:
            raise UserError(f"The smallest side of a cut is a share, above 0 and at most 1, not {self.smallest}.")
        if self.shift < 0 or self.degrees < 0:
            raise UserError("A view is shifted and turned by at least nothing; neither can be negative.")

    def __call__(self, x, noise):
        height, width = x.shape[2:]
        size, across, down, turn = draws(x, noise, 4).unbind(1)
        side = 1 - (1 - self.smallest) * (size + 1) / 2
        room = 1 - side + self.shift
        angle = turn * math.radians(self.degrees)
        cos, sin = side * angle.cos(), side * angle.sin()
        # where in the picture each pixel of the view comes from, both axes running from -1 to 1
        rows = [[cos, -sin * (height / width), across * room], [sin * (width / height), cos, down * room]]
        theta = torch.stack([torch.stack(row, 1) for row in rows], 1)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


@kind("augment.Mirror")
@dataclass(frozen=True)
class Mirror(Augmentation):
    """Left and right exchanged, for half of the pictures."""

    def __call__(self, x, noise):
        return torch.where(draws(x, noise, 1, 1, 1) < 0, x.flip(-1), x)


@kind("augment.Jitter")
@dataclass(frozen=True)
class Jitter(Augmentation):
    """Other light and colours: each channel times its own factor, then distances to the mean brightness times one.

    brightness, contrast: factors are uniform from 1 minus to 1 plus this; light is counted from black, -1.
    colour: the same for the factors by which channels differ. grey: the share of the pictures that lose their colours.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    colour: float = 0.2
    grey: float = 0.2

    def __post_init__(self):
        if not all(0 <= value <= 1 for value in vars(self).values()):
            raise UserError("Brightness, contrast, colour and grey of a jitter lie between 0 and 1.")

    def __call__(self, x, noise):
        channels = x.shape[1]
        u = draws(x, noise, channels + 3, 1, 1)
        light = (x + 1) / 2 * (1 + self.brightness * u[:, :1])
        if channels > 1:
            light = light * (1 + self.colour * u[:, 3:])
            light = torch.where((u[:, 1:2] + 1) / 2 < self.grey, light.mean(1, keepdim=True), light)
        mean = light.mean((1, 2, 3), keepdim=True)
        light = mean + (light - mean) * (1 + self.contrast * u[:, 2:3])
        return (2 * light - 1).clamp(-1, 1)


@kind("augment.Blur")
@dataclass(frozen=True)
class Blur(Augmentation):
    """Part of the way to the average with the neighbours, weights 1 2 1 along each axis.

    most: how far, uniform from 0 to this share.
    """

    most: float = 1.0

    def __post_init__(self):
        if not 0 <= self.most <= 1:
            raise UserError(f"The most that a view is blurred is a share, from 0 to 1, not {self.most}.")

    def __call__(self, x, noise):
        channels = x.shape[1]
        line = x.new_tensor([1.0, 2.0, 1.0]) / 4
        kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
        blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)
        return x.lerp(blurred, self.most * (draws(x, noise, 1, 1, 1) + 1) / 2)


@kind("augment.Grain")
@dataclass(frozen=True)
class Grain(Augmentation):
    """Normal noise of a standard deviation that is uniform from 0 to `most`."""

    most: float = 0.1

    def __post_init__(self):
        if self.most < 0:
            raise UserError(f"The standard deviation of a grain cannot be negative, as {self.most} is.")

    def __call__(self, x, noise):
        std = self.most * (draws(x, noise.at("std"), 1, 1, 1) + 1) / 2
        return (x + std * noise.normal(x)).clamp(-1, 1)


def view(x: Tensor, changes: Sequence[Augmentation], noise: Noise) -> Tensor:
    """x (B, C, H, W) after all `changes`, in order; in its own precision, whatever the network's is."""
    with torch.autocast(x.device.type, enabled=False):
        for place, change in enumerate(changes):
            x = change(x, noise.at(place))
    return x


def views_for(shape: tuple[int, int, int], *, placed: bool = False, mirror: bool = False) -> tuple[Augmentation, ...]:
    """The changes to begin with, for pictures of `shape`.

    placed: it matters where things are, how large and of what colour: no change but grain, blur and a little light.
    mirror: it does not matter which side is left.
    """
    if placed:
        return (Blur(0.5), Jitter(0.1, 0.1, 0.0, 0.0), Grain(0.2))
    small = max(shape[1:]) <= 12
    changes = [Move(0.7, 0.2, 10.0) if small else Move(0.4), Jitter(), Blur(0.5), Grain(0.1)]
    return (Mirror(), *changes) if mirror else tuple(changes)
