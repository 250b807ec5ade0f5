"""A U-Net for pictures: residual blocks on a pyramid of resolutions, with a bridge across at each block.

On the way down each level has `blocks` residual blocks and then halves the picture by averaging; on the way up each
level doubles it by repetition, and every block also sees the output of its mirror image on the way down. Resampling
has no weights of its own: the blocks around it mix channels at the lower resolution, where that is cheapest. Odd
sizes are rounded up on the way down and cut to the mirror's size on the way up, so any picture fits.

Each block reads noise level and label through its second norm, as scale and shift per channel, and ends in zeros, as
does the network: before training it returns exactly zero, and the gradient reaches all of it from the second step on.

Activations are channels-last throughout, where norms, resampling and attention are fastest; weights keep torch's
default format, so that they are saved as they are. Ronneberger et al. 2015; Ho et al. 2020; Dhariwal & Nichol 2021,
section 3.
"""

import torch
import torch.nn.functional as F
from torch import nn

from backdrift.errors import UserError
from backdrift.nets.blocks import Conditioning, GroupNorm, attention, modulate, zeroed


class ResBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the second is told the embedding (B, E) by scale and shift."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dropout: float):
        super().__init__()
        self.norm_in = GroupNorm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm_out = GroupNorm(channels_out, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x, embedding):
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = F.silu(modulate(self.norm_out(h), scale, shift))
        return self.shortcut(x) + self.conv_out(self.dropout(h))


class SelfAttention(nn.Module):
    """Every position of x (B, C, H, W) looks at every other one."""

    def __init__(self, channels: int, head_width: int):
        super().__init__()
        self.heads = channels // head_width
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x):
        tokens = self.norm(x).flatten(2).mT  # (B, N, C), no copy from channels-last
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).mT.unflatten(2, x.shape[2:])


class Stage(nn.Module):
    """A residual block, and attention after it where wanted."""

    def __init__(self, channels_in, channels_out, embedding, dropout, head_width=None):
        super().__init__()
        self.block = ResBlock(channels_in, channels_out, embedding, dropout)
        self.attention = SelfAttention(channels_out, head_width) if head_width else nn.Identity()

    def forward(self, x, embedding):
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """The network of the module's docstring: pictures (B, channels, H, W) -> the same shape.

    channels:     of the picture, in and out.
    width:        channels at full resolution, a multiple of 16.
    multipliers:  of `width`, one per level; each level has half the resolution of the one before.
    blocks:       residual blocks per level, on either way.
    attention:    the levels (0 is full resolution) with self-attention after each block; the middle of the network has
                  it where the last level does.
    head_width:   channels per attention head.
    dropout:      inside residual blocks.
    classes:      number of labels; 0 for none.

    `config` is these arguments as plain JSON values: `UNet(**net.config)` builds the same network.
    UserError: widths that do not divide, levels that do not exist, a dropout that is no share.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (1, 2),
        head_width: int = 32,
        dropout: float = 0.0,
        classes: int = 0,
    ):
        super().__init__()
        widths = [width * m for m in multipliers]
        check(channels, width, widths, blocks, attention, head_width, dropout, classes)
        self.config = {
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "head_width": head_width,
            "dropout": dropout,
            "classes": classes,
        }
        embedding = 4 * width
        rest = (embedding, dropout)
        self.conditioning = Conditioning(embedding, classes)
        self.entry = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()  # in the order of `down`; walked backwards
        previous = width
        for level, c in enumerate(widths):
            heads = head_width if level in attention else None
            above = widths[level + 1] if level + 1 < len(widths) else c
            into = [previous] + [c] * (blocks - 1)
            self.down.append(nn.ModuleList(Stage(i, c, *rest, heads) for i in into))
            into = [above + c] + [2 * c] * (blocks - 1)
            self.up.append(nn.ModuleList(Stage(i, c, *rest, heads) for i in into))
            previous = c
        # `heads` is now the last level's, and the middle does as the last level does
        self.middle = nn.ModuleList([Stage(c, c, *rest, heads), Stage(c, c, *rest)])
        self.norm = GroupNorm(width * multipliers[0])
        self.exit = zeroed(nn.Conv2d(width * multipliers[0], channels, 3, padding=1))

    def forward(self, x, noise, cond=None):
        """x (B, channels, H, W) of unit variance, noise angle (B,) in [0, pi/2], cond {"label": (B,)} or None.

        Returns x's shape and dtype. UserError: a label that does not exist.
        """
        dtype = self.entry.weight.dtype
        embedding = self.conditioning(noise, cond).to(dtype)
        h = self.entry(channels_last(x.to(dtype)))
        seen = []
        for level, stages in enumerate(self.down):
            if level:
                h = F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)
            for stage in stages:
                h = stage(h, embedding)
                seen.append(h)
        for stage in self.middle:
            h = stage(h, embedding)
        for stages in reversed(self.up):
            for stage in stages:
                mirror = seen.pop()
                if mirror.shape[2:] != h.shape[2:]:
                    h = F.interpolate(h, scale_factor=2)[..., : mirror.shape[-2], : mirror.shape[-1]]
                h = stage(torch.cat([h, mirror], dim=1), embedding)
        return self.exit(F.silu(self.norm(h))).to(x.dtype)


def channels_last(x):
    """x (B, C, H, W) laid out with its channels next to each other; written so that `torch.vmap` can see through it."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def check(channels, width, widths, blocks, attention, head_width, dropout, classes):
    """UserError for a choice that no network can be built from."""
    if channels < 1 or blocks < 1 or not widths or min(widths) < 1 or classes < 0:
        raise UserError("A U-Net needs at least one channel, one level and one block per level, and classes >= 0.")
    if width % 16:
        raise UserError(f"The U-Net's width must be a multiple of 16; got {width}.")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout is a share, from 0 to less than 1, not {dropout}.")
    missing = [level for level in attention if not 0 <= level < len(widths)]
    if missing:
        raise UserError(f"Attention was asked for at level {missing[0]}, but levels run from 0 to {len(widths) - 1}.")
    uneven = [widths[level] for level in attention if widths[level] % head_width]
    if uneven:
        raise UserError(f"Attention over {uneven[0]} channels cannot be split into heads of width {head_width}.")


def parameters_count(net: nn.Module) -> int:
    """The number of trainable numbers in a network."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
