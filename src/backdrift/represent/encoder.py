"""The encoder: from a picture to its representation.

A representation is a vector of `size` numbers with mean square 1, so only its direction means something: the cosine of
two is their inner product over `size`, and a diffusion model of them meets numbers of order 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.process.gaussian import Gaussian
from backdrift.train.networks import NetChoice


class Encoder(nn.Module):
    """Pictures (B, C, H, W) in [-1, 1] to representations (B, size).

    net: a network with `features` and `project`, such as `backdrift.nets.ConvEncoder`. process, sigma_data: those of
    the run; an encoder sees clean pictures and only passes them on. event_shape: (C, H, W).
    """

    name = "encoder"  # beside figures that are measured in its space

    def __init__(self, net: nn.Module, process: Gaussian, sigma_data: float, event_shape: tuple[int, ...]):
        super().__init__()
        self.net, self.process, self.sigma_data = net, process, sigma_data
        self.event_shape = tuple(event_shape)

    @property
    def size(self) -> int:
        """Numbers in a representation."""
        return self.net.size

    def around(self, net: nn.Module) -> Encoder:
        """The same encoder with another net in its place."""
        return Encoder(net, self.process, self.sigma_data, self.event_shape)

    def forward(self, x: Tensor) -> Tensor:
        """(B, size), of mean square 1 each. Raises `UserError` for pictures of another shape."""
        if tuple(x.shape[1:]) != self.event_shape:
            raise UserError(f"This encoder is for pictures of shape {self.event_shape}, not {tuple(x.shape[1:])}.")
        return unit(self.net.features(x.float()).float())

    def readings(self, x: Tensor) -> Tensor:
        """What the contrastive loss compares, (B, any)."""
        return self.net.project(self(x))


def unit(vectors: Tensor) -> Tensor:
    """Vectors (B, size) brought to mean square 1; zeros stay zeros."""
    return F.normalize(vectors, dim=1) * math.sqrt(vectors.shape[1])


@kind("net.ConvEncoder")
@dataclass(frozen=True)
class EncoderChoice(NetChoice):
    """The library's encoder (`backdrift.nets.ConvEncoder`), whose arguments these are."""

    width: int = 32
    blocks: int = 1

    def build(self, shape, classes, outputs=None):
        from backdrift.nets.encoder import ConvEncoder

        return ConvEncoder(shape, outputs or 64, **vars(self))
