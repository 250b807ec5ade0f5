"""Conditions that are made from the picture itself: its edges, its regions, a part of it, a small copy of it.

A network that is trained with one learns to make pictures that have it. Each is a function of the picture, and of keyed
noise where it is random (a mask), so the stream of training samples stays a pure function of its place, and whoever
samples takes the condition of any picture by the same function.

Zeros everywhere mean "nothing is known": that is what a hidden condition becomes (`dropout`), and what a network takes
a missing one for. So conditions of two values are written -1 and 1, and a mask of known pixels is 0 and 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.posterior import expand


@dataclass(frozen=True, kw_only=True)
class Derived(ABC):
    """A condition of pictures; subclasses are frozen dataclasses of a `kind`.

    dropout: the share of the training samples for which it is hidden, for guidance.
    """

    dropout: float = 0.0

    def __post_init__(self):
        if not 0 <= self.dropout <= 1:
            raise UserError(f"The dropout of a condition is a share, from 0 to 1, not {self.dropout}.")

    @abstractmethod
    def cond(self, x0: Tensor, noise: Noise) -> dict[str, Tensor]:
        """The conditions, (B, ...) each, by name. x0: (B, C, H, W) in [-1, 1]. noise: of the same B samples."""


def derive(derived: Sequence[Derived], x0: Tensor, noise: Noise, *, hide: bool = False) -> dict[str, Tensor]:
    """All conditions of these pictures. hide: replace each by zeros in its share of the samples."""
    found: dict[str, Tensor] = {}
    for each in derived:
        own = noise.at(each.kind)
        for name, value in each.cond(x0, own).items():
            if hide and each.dropout > 0:
                hidden = own.at("hidden").uniform(torch.zeros(len(x0), dtype=torch.float64)) < each.dropout
                value = value.masked_fill(expand(hidden, value).bool(), 0)
            found[name] = value
    return found


def channels(derived: Sequence[Derived], shape: tuple[int, ...]) -> dict[str, int]:
    """The conditions that are pictures of the same size, for pictures of `shape` (C, H, W): name and channels."""
    made = derive(derived, torch.zeros(1, *shape), Noise.of(0, 1))
    return {name: value.shape[1] for name, value in made.items() if value.shape[2:] == tuple(shape[1:])}


@kind("derived.Edges")
@dataclass(frozen=True)
class Edges(Derived):
    """{"edges": (B, 1, H, W)}: 1 where the brightness changes by more than `threshold` per pixel, -1 elsewhere.

    In the channel where it changes most; the slope is Sobel's, sqrt(gx^2 + gy^2) with rows 1 2 1 over 8, where the
    border pixels repeat outwards. A step from black to white (-1 to 1) has slope 1 on both of its sides.
    """

    threshold: float = 0.5

    def cond(self, x0, noise):
        return {"edges": (slope(x0) > self.threshold).to(x0) * 2 - 1}


@kind("derived.Segmentation")
@dataclass(frozen=True)
class Segmentation(Derived):
    """{"segments": (B, 1, H, W)}: the picture's regions of similar brightness, in grey levels from -1 to 1.

    Brightness is the largest channel, averaged over squares of 2 blur + 1 pixels; [-1, 1] is cut into `regions` bands
    of one width, and region k of n is written -1 + 2 k / (n - 1). It says where something is, not of what colour.
    """

    regions: int = 3
    blur: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.regions < 2 or self.blur < 0:
            raise UserError(f"A segmentation has at least 2 regions and no negative blur, not {self.regions} regions.")

    def number(self, x0: Tensor) -> Tensor:
        """The region of each pixel, int64 (B, H, W) in 0..regions - 1."""
        grey = averaged(x0.amax(1, keepdim=True), self.blur).squeeze(1)
        return ((grey + 1) / 2 * self.regions).floor().long().clamp(0, self.regions - 1)

    def cond(self, x0, noise):
        return {"segments": (self.number(x0).to(x0) * (2 / (self.regions - 1)) - 1)[:, None]}


@kind("derived.KnownPixels")
@dataclass(frozen=True)
class KnownPixels(Derived):
    """{"known": (B, C, H, W), "mask": (B, 1, H, W)}: a random part of the picture, the rest 0, and where it is known.

    The mask is 1 at known pixels. By equal chances it is a picture with a rectangle missing, a rectangle alone, or
    pixels scattered at a random density; sides, place and density are uniform, so nothing known and everything known
    occur as well.
    """

    def cond(self, x0, noise):
        mask = self.mask(x0, noise)
        return {"known": x0 * mask, "mask": mask}

    def mask(self, x0: Tensor, noise: Noise) -> Tensor:
        """(B, 1, H, W) of zeros and ones."""
        draws = noise.at("rectangle").uniform(x0.new_zeros(len(x0), 6, 1))
        way, density, *spans = draws.unbind(1)
        inside = between(*spans[:2], x0.shape[2])[:, :, None] & between(*spans[2:], x0.shape[3])[:, None, :]
        way, scattered = way[:, None], noise.at("scattered").uniform(x0[:, 0]) < density[:, None]
        missing, alone = way < 1 / 3, way > 2 / 3
        return torch.where(missing, ~inside, torch.where(alone, inside, scattered)).to(x0)[:, None]


@kind("derived.LowResolution")
@dataclass(frozen=True)
class LowResolution(Derived):
    """{"small": (B, C, H, W)}: averages over squares of `factor` pixels, each repeated over its square.

    Raises `UserError` for pictures whose sides are no multiples of the factor.
    """

    factor: int = 2

    def cond(self, x0, noise):
        if self.factor < 2 or any(side % self.factor for side in x0.shape[2:]):
            sides = " x ".join(map(str, x0.shape[2:]))
            raise UserError(f"A resolution {self.factor} times lower needs sides that it divides, not {sides} pixels.")
        return {"small": F.interpolate(F.avg_pool2d(x0, self.factor), scale_factor=self.factor)}


def slope(x0: Tensor) -> Tensor:
    """How fast brightness changes, per pixel, in the channel where it changes most: (B, 1, H, W), Sobel's estimate."""
    padded = F.pad(x0, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    across = x0.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    both = F.conv2d(padded, torch.stack([across, across.T])[:, None])
    return both.square().sum(1).sqrt().unflatten(0, x0.shape[:2]).amax(1, keepdim=True)


def averaged(x: Tensor, radius: int) -> Tensor:
    """Averages over squares of 2 radius + 1 pixels, or what of them lies inside."""
    if radius == 0:
        return x
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)


def between(length: Tensor, place: Tensor, size: int) -> Tensor:
    """Stretches of 0..size - 1 as booleans (B, size): length and place (B, 1) are uniform in (0, 1)."""
    count = (length * size).floor() + 1  # 1 to size
    start = (place * (size + 1 - count)).floor()
    at = torch.arange(size, device=length.device)
    return (at >= start) & (at < start + count)
