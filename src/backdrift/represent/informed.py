"""A denoiser that is told what the picture shows: the representation as a condition.

The network's embedding of noise and label gets a third term, a small network of the representation, which starts at
zero. The representation is given itself, as `cond["representation"]` (B, size), or as a picture that has it,
`cond["like"]` (B, C, H, W): the frozen encoder is a part of the network, so a run needs nothing beside itself. Zeros of
either, and neither, mean that nothing is known, which is the unconditional belief that guidance needs.

With a second denoiser, of representations, this is RCG: what is to be shown is drawn first, then how it looks, and no
label is needed. Li et al. 2023, arXiv:2312.03701.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from backdrift.config import kind
from backdrift.data.derived import Derived
from backdrift.errors import UserError
from backdrift.nets.blocks import wide_linear, zeroed
from backdrift.represent.encoder import EncoderChoice, unit
from backdrift.train.checkpoint import put
from backdrift.train.onto import Onto


@kind("derived.Likeness")
@dataclass(frozen=True)
class Likeness(Derived):
    """{"like": (B, C, H, W)}: the picture itself, for a network that encodes it."""

    def cond(self, x0, noise):
        return {"like": x0}


class Informed(nn.Module):
    """A network's embedding of its conditions, and what `encoder` says of a picture: noise (B,), cond -> (B, width).

    plain: the embedding without. encoder: a network with `size` and `features`, frozen.
    """

    def __init__(self, plain: nn.Module, encoder: nn.Module):
        super().__init__()
        self.plain, self.encoder = plain, encoder.requires_grad_(False).eval()
        width = plain(torch.zeros(1)).shape[1]
        self.entry, self.exit = nn.Linear(encoder.size, width), zeroed(nn.Linear(width, width))

    @property
    def further(self):
        """Of the embedding without."""
        return self.plain.further

    def train(self, mode: bool = True):
        """The encoder stays as it is."""
        super().train(mode)
        self.encoder.eval()
        return self

    def representation(self, noise, cond):
        """(B, size), of mean square 1 or 0. UserError: other shapes."""
        cond = cond or {}
        given, like = cond.get("representation"), cond.get("like")
        if given is None and like is None:
            return noise.new_zeros(len(noise), self.encoder.size)
        if given is None:
            shape = (len(noise), *self.encoder.config["shape"])
            if like.shape != shape:
                raise UserError(f"The pictures to be like must be {shape}, not {tuple(like.shape)}.")
            known = like.flatten(1).any(1, keepdim=True)
            return unit(self.encoder.features(like.float())) * known
        if given.shape != (len(noise), self.encoder.size):
            raise UserError(f"Representations must be ({len(noise)}, {self.encoder.size}), not {tuple(given.shape)}.")
        return unit(given.float())

    def forward(self, noise, cond=None):
        embedding = self.plain(noise, cond)
        with torch.autocast(noise.device.type, enabled=False):
            hidden = F.silu(wide_linear(self.entry, self.representation(noise, cond)))
            return embedding + wide_linear(self.exit, hidden).to(embedding.dtype)


@kind("net.Informed")
@dataclass(frozen=True)
class InformedChoice(Onto):
    """A network that is told the representation. encoder, size: of the encoder that is a part of it.

    A training of it starts from the run of that encoder.
    """

    encoder: EncoderChoice
    size: int

    def build(self, shape, classes, outputs=None):
        net = self.net.build(shape, classes, outputs)
        net.conditioning = Informed(net.conditioning, self.encoder.build(shape, 0, self.size))
        return net

    def start(self, net, tensors, complaint):
        """From an encoder's weights, or from a network's of its own kind."""
        put(tensors, net.conditioning.encoder if "head.0.weight" in tensors else net, complaint)


def informed(denoiser: nn.Module) -> Informed:
    """The part of a denoiser, guided or not, that is told the representation.

    Raises `UserError` for one that is not told.
    """
    for part in denoiser.modules():
        if isinstance(part, Informed):
            return part
    raise UserError(
        "This model was not trained to be told what a picture shows; see backdrift train --task represented."
    )


@torch.no_grad()
def representation_of(denoiser: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """What the encoder inside a denoiser says of `pictures` (B, C, H, W): (B, size), to be given as a condition.

    Raises `UserError` for a denoiser without one, and for pictures of another shape.
    """
    part = informed(denoiser)
    device = part.entry.weight.device
    return part.representation(torch.zeros(len(pictures), device=device), {"like": pictures.to(device)})
