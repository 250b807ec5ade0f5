"""A small convolutional encoder: a picture halved until its shorter side is at most 4, then one linear map.

Norms look at one picture at a time: statistics over a batch would tell the two views of a picture apart from others by
the batch that they are in. All positions that are left are read, not their average, so it can know where things are.
"""

import torch.nn.functional as F
from torch import nn

from backdrift.errors import UserError
from backdrift.nets.blocks import GroupNorm
from backdrift.nets.pyramid import channels_last, conv, halve


class Layer(nn.Module):
    """A norm, and a convolution of 3, beside a shortcut where the channels stay."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm = GroupNorm(channels_in)
        self.conv = conv(2, channels_in, channels_out, 3)
        self.same = channels_in == channels_out

    def forward(self, x):
        h = self.conv(F.silu(self.norm(x)))
        return x + h if self.same else h


class ConvEncoder(nn.Module):
    """features: x (B, C, H, W) -> (B, size). project: (B, size) -> (B, size), what a contrastive loss compares.

    shape: (C, H, W). width: channels at full resolution, a multiple of 16; doubled twice on the way down. blocks:
    convolutions per resolution beyond the first. `config` is these arguments as plain JSON values.
    """

    def __init__(self, shape: tuple[int, int, int], size: int, *, width: int = 32, blocks: int = 1):
        super().__init__()
        if width < 16 or width % 16 or blocks < 1:
            raise UserError(f"An encoder's width is a multiple of 16, with at least one block; got {width}, {blocks}.")
        self.size = size
        self.config = {"shape": list(shape), "size": size, "width": width, "blocks": blocks}
        channels, height, breadth = shape
        self.entry = conv(2, channels, width, 3)
        self.levels = nn.ModuleList()
        here = width
        while min(height, breadth) > 4:
            height, breadth, wider = (height + 1) // 2, (breadth + 1) // 2, min(2 * here, 4 * width)
            self.levels.append(nn.Sequential(Layer(here, wider), *(Layer(wider, wider) for _ in range(blocks - 1))))
            here = wider
        self.norm = GroupNorm(here)
        self.exit = nn.Linear(here * height * breadth, size)
        self.head = nn.Sequential(nn.Linear(size, 2 * size), nn.SiLU(), nn.Linear(2 * size, size))

    def features(self, x):
        """x (B, C, H, W) in [-1, 1]."""
        h = self.entry(channels_last(x))
        for level in self.levels:
            h = level(halve(h))
        return self.exit(F.silu(self.norm(h)).flatten(1))

    def project(self, features):
        """The reading of a representation."""
        return self.head(features)

    def forward(self, x, noise=None, cond=None):
        """The features."""
        return self.features(x)
