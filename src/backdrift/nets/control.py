"""Control: a trained network made to follow a picture of conditions, such as edges, without touching its weights.

A copy of the network's encoder, the side, is trained; it sees what the encoder sees and, at its entry, the condition.
What each of its blocks gives is added to what the same block of the network gives, where its decoder (a U-Net) or its
next block (a transformer) reads it. Every such join is a layer that starts at zero, and so does the layer through
which the condition enters. So before training the controlled network is the network itself, and from the first step on
the gradient reaches the joins. Zhang et al. 2023, arXiv:2302.05543, section 3; for transformers, where the first half
of the blocks is copied, Chen et al. 2024, arXiv:2401.05252, section 2.2.

Without a condition the side is not called: the network is again what it was, exactly, which is the unconditional
belief that guidance towards the condition needs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch.nn.functional as F
from torch import nn

from backdrift.errors import UserError
from backdrift.nets.beside import gather
from backdrift.nets.blocks import zeroed
from backdrift.nets.dit import DiT, cut_patches
from backdrift.nets.mp_unet import MPUNet
from backdrift.nets.pyramid import channels_last, conv
from backdrift.nets.unet import UNet


class Controlled(nn.Module):
    """`base`, frozen, and the side that follows the conditions `pictures` (name: channels).

    Called as the base; conditions are cond[name] (B, channels, *space). Some missing are zeros, all missing are the
    base alone.

    UserError: a base that is none of the library's own; when called, a condition of another shape.
    """

    def __init__(self, base: nn.Module, pictures: Mapping[str, int]):
        super().__init__()
        if not isinstance(base, (UNet, MPUNet, DiT)):
            raise UserError(
                f"Control serves the library's U-Nets and its transformer as they are, not a {type(base).__name__}."
            )
        self.base, self.pictures = base.requires_grad_(False).eval(), dict(pictures)
        self.side = encoder_of(base)
        channels = sum(self.pictures.values())
        self.hint = PatchHint(base, channels) if isinstance(base, DiT) else PixelHint(base, channels)
        self.joins = nn.ModuleList(joins(base))

    def begin(self) -> None:
        """Make the side a copy of the base's encoder, as it is now."""
        own = self.base.state_dict()
        self.side.load_state_dict({name: own[name] for name in self.side.state_dict()})

    def train(self, mode: bool = True):
        """The base stays in evaluation mode: nothing in it changes, and it drops nothing out."""
        super().train(mode)
        self.base.eval()
        return self

    def forward(self, x, noise, cond=None):
        """As the base's own."""
        if not any(name in (cond or {}) for name in self.pictures):
            return self.base(x, noise, cond)
        hint = self.hint(gather(self.pictures, x, cond))
        passed = self.side.trail(x, noise, cond, hint)
        return self.base(x, noise, cond, [join(h) for join, h in zip(self.joins, passed, strict=True)])


class PixelHint(nn.Module):
    """Conditions (B, channels, *space) as what a U-Net's entry gives; zero before training."""

    def __init__(self, base: UNet | MPUNet, channels: int):
        super().__init__()
        dims, width = base.config["dims"], base.config["width"]
        self.first, self.second = conv(dims, channels, width, 3), conv(dims, width, width, 3)
        self.last = zeroed(conv(dims, width, width, 3))

    def forward(self, pictures):
        pictures = channels_last(pictures.to(self.first.weight.dtype))
        return self.last(F.silu(self.second(F.silu(self.first(pictures)))))


class PatchHint(nn.Module):
    """Conditions (B, channels, *space) as tokens of a transformer's patches; zero before training."""

    def __init__(self, base: DiT, channels: int):
        super().__init__()
        width, self.patch = base.config["width"], base.patch
        self.first, self.last = nn.Linear(channels * base.patch**base.dims, width), zeroed(nn.Linear(width, width))

    def forward(self, pictures):
        patches, _ = cut_patches(pictures.to(self.first.weight.dtype), self.patch)
        return self.last(F.silu(self.first(patches)))


def encoder_of(base: UNet | MPUNet | DiT) -> nn.Module:
    """A copy of what `base.trail` uses, to be trained."""
    side = copy.deepcopy(base).requires_grad_(True)
    if isinstance(side, DiT):
        side.blocks = side.blocks[: half(side)]
        unused = ("norm", "modulation", "exit")
    elif isinstance(side, MPUNet):
        unused = ("up", "exit", "gain")
    else:
        unused = ("up", "norm", "exit", "larger")
    for name in unused:
        delattr(side, name)
    return side


def joins(base: UNet | MPUNet | DiT):
    """A layer that starts at zero for each output of `base.trail`."""
    if isinstance(base, DiT):
        width = base.config["width"]
        return [zeroed(nn.Linear(width, width)) for _ in range(half(base))]
    dims, width = base.config["dims"], base.config["width"]
    widths = [width * m for m in base.config["multipliers"] for _ in range(base.config["blocks"])]
    return [zeroed(conv(dims, c, c, 1)) for c in [*widths, widths[-1]]]


def half(base: DiT) -> int:
    """How many of a transformer's blocks are copied."""
    return (base.config["depth"] + 1) // 2
