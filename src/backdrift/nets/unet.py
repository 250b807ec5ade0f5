"""A U-Net for signals, pictures and volumes: residual blocks on the pyramid of `pyramid`.

Resampling has no weights of its own: the blocks around it mix channels at the lower resolution, where that is
cheapest. With `residual_resampling` a residual block does it, which resamples inside (Dhariwal & Nichol 2021).

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
from backdrift.nets.blocks import Conditioning, GroupNorm, modulate, zeroed
from backdrift.nets.look import Attention, ConditionTokens
from backdrift.nets.pyramid import ascend, channels_last, check, conv, descend, double, halve, levels


class ResBlock(nn.Module):
    """Two convolutions of 3 beside a shortcut; the second is told the embedding (B, E) by scale and shift.

    resample: `halve`, `double` or None, applied to both ways, in front of the first convolution.
    """

    def __init__(self, dims: int, channels_in: int, channels_out: int, embedding: int, dropout: float, resample=None):
        super().__init__()
        self.norm_in = GroupNorm(channels_in)
        self.conv_in = conv(dims, channels_in, channels_out, 3)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm_out = GroupNorm(channels_out, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(conv(dims, channels_out, channels_out, 3))
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else conv(dims, channels_in, channels_out, 1)
        self.resample = resample

    def forward(self, x, embedding, tokens=None):
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = F.silu(self.norm_in(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv_in(h)
        h = F.silu(modulate(self.norm_out(h), scale, shift))
        return self.shortcut(x) + self.conv_out(self.dropout(h))


class SpaceAttention(Attention):
    """Every position of x (B, C, *space) looks at every other one and at the condition's tokens."""

    def __init__(self, channels: int, head_width: int, tokens: int):
        super().__init__(channels, head_width, tokens)
        self.norm = GroupNorm(channels)

    def forward(self, x, tokens):
        positions = self.norm(x).flatten(2).mT  # (B, N, C), no copy from channels-last
        return x + super().forward(positions, tokens).mT.unflatten(2, x.shape[2:])


class Stage(nn.Module):
    """A residual block, and attention after it where wanted."""

    def __init__(self, dims, channels_in, channels_out, embedding, dropout, tokens=0, head_width=None):
        super().__init__()
        self.block = ResBlock(dims, channels_in, channels_out, embedding, dropout)
        self.attention = SpaceAttention(channels_out, head_width, tokens) if head_width else None

    def forward(self, x, embedding, tokens):
        h = self.block(x, embedding)
        return h if self.attention is None else self.attention(h, tokens)


class UNet(nn.Module):
    """The network of the module's docstring: x (B, channels, *space) -> (B, outputs, *space).

    channels:     of the picture.
    outputs:      channels out, as many as in by default (a learned variance takes twice as many).
    dims:         axes of the space: 1 for signals, 2 for pictures, 3 for volumes.
    width:        channels at full resolution, a multiple of 16.
    multipliers:  of `width`, one per level; each level has half the resolution of the one before.
    blocks:       residual blocks per level, on either way.
    attention:    the levels (0 is full resolution) with attention after each block; the middle of the network has
                  it where the last level does.
    head_width:   channels per attention head.
    residual_resampling: change the resolution inside residual blocks of their own.
    dropout:      inside residual blocks.
    classes:      number of labels; 0 for none.
    tokens:       width of the condition's tokens, which attention looks at; 0 for none.

    `config` is these arguments as plain JSON values: `UNet(**net.config)` builds the same network.
    UserError: widths that do not divide, levels that do not exist, a dropout that is no share.
    """

    def __init__(
        self,
        channels: int,
        *,
        outputs: int | None = None,
        dims: int = 2,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (1, 2),
        head_width: int = 32,
        residual_resampling: bool = False,
        dropout: float = 0.0,
        classes: int = 0,
        tokens: int = 0,
    ):
        super().__init__()
        if width % 16:
            raise UserError(f"The U-Net's width must be a multiple of 16; got {width}.")
        widths = [width * m for m in multipliers]
        check(channels, dims, widths, blocks, attention, head_width, dropout, classes, tokens)
        self.config = {
            "channels": channels,
            "outputs": outputs,
            "dims": dims,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "head_width": head_width,
            "residual_resampling": residual_resampling,
            "dropout": dropout,
            "classes": classes,
            "tokens": tokens,
        }
        embedding = 4 * width
        rest = (embedding, dropout)
        self.conditioning = Conditioning(embedding, classes, tokens)
        self.tokens = ConditionTokens(tokens)
        self.entry = conv(dims, channels, width, 3)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()  # in the order of `down`; walked backwards
        for level, (c, down, up) in enumerate(levels(width, widths, blocks)):
            heads = (tokens, head_width if level in attention else None)
            self.down.append(nn.ModuleList(Stage(dims, i, c, *rest, *heads) for i in down))
            self.up.append(nn.ModuleList(Stage(dims, i, c, *rest, *heads) for i in up))
        # `heads` is now the last level's, and the middle does as the last level does
        self.middle = nn.ModuleList([Stage(dims, c, c, *rest, *heads), Stage(dims, c, c, *rest)])
        self.norm = GroupNorm(widths[0])
        self.exit = zeroed(conv(dims, widths[0], outputs or channels, 3))
        self.smaller = self.larger = None
        if residual_resampling:
            self.smaller = nn.ModuleList(ResBlock(dims, c, c, *rest, halve) for c in widths[:-1])
            self.larger = nn.ModuleList(ResBlock(dims, c, c, *rest, double) for c in widths[1:])

    def forward(self, x, noise, cond=None, added=None):
        """x (B, channels, *space) of unit variance, noise angle (B,) in [0, pi/2].

        cond: None or {"label": (B,), "tokens": (B, M, tokens), "tokens_mask": (B, M), "summary": (B, tokens)}, each
        optional. added: what to
        add to each output of `trail` (see `control`), or None.
        Returns x's dtype. UserError: a label that does not exist, tokens of another shape.
        """
        told = self._told(x, noise, cond)
        seen, h = self._descend(x, told)
        if added is not None:
            *across, last = added
            seen, h = [s + a for s, a in zip(seen, across, strict=True)], h + last
        larger = self.larger or [lambda h, *told: double(h)] * len(self.down)
        h = ascend(h, seen, self.up, larger=larger, join=beside, told=told)
        return self.exit(F.silu(self.norm(h))).to(x.dtype)

    def trail(self, x, noise, cond=None, hint=None):
        """The outputs of all blocks on the way down, then of the middle. hint: added to what the first block reads."""
        seen, h = self._descend(x, self._told(x, noise, cond), hint)
        return [*seen, h]

    def _told(self, x, noise, cond):
        dtype = self.entry.weight.dtype
        return self.conditioning(noise, cond).to(dtype), self.tokens(x.to(dtype), cond)

    def _descend(self, x, told, hint=None):
        smaller = self.smaller or [lambda h, *told: halve(h)] * len(self.down)
        h = self.entry(channels_last(x.to(self.entry.weight.dtype)))
        return descend(h if hint is None else h + hint, self.down, self.middle, smaller=smaller, told=told)


def beside(x, mirror):
    """The channels of both."""
    return torch.cat([x, mirror], dim=1)


def parameters_count(net: nn.Module) -> int:
    """The number of trainable numbers in a network."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
