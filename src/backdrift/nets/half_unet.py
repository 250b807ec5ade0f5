"""The way down of the U-Net: from a picture and its noise level to a few numbers, such as the logits of a classifier.

Dhariwal & Nichol 2021, section 4, take the same half for their classifiers. The picture is reduced level by level; what
is left is averaged over its positions, and a linear map reads the average.
"""

import torch.nn.functional as F
from torch import nn

from backdrift.errors import UserError
from backdrift.nets.blocks import Conditioning, GroupNorm, zeroed
from backdrift.nets.pyramid import channels_last, check, conv, halve, levels
from backdrift.nets.unet import Stage


class HalfUNet(nn.Module):
    """x (B, channels, *space) -> (B, outputs), zeros before training.

    Arguments as for `UNet`. `config` is these arguments as plain JSON values: `HalfUNet(**net.config)` builds the same
    network. UserError: as for `UNet`, and for less than one output.
    """

    def __init__(
        self,
        channels: int,
        *,
        outputs: int,
        dims: int = 2,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (1, 2),
        head_width: int = 32,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width % 16:
            raise UserError(f"The U-Net's width must be a multiple of 16; got {width}.")
        if outputs < 1:
            raise UserError(f"A network needs at least one output, not {outputs}.")
        widths = [width * m for m in multipliers]
        check(channels, dims, widths, blocks, attention, head_width, dropout, 0, 0)
        self.config = {
            "channels": channels,
            "outputs": outputs,
            "dims": dims,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "head_width": head_width,
            "dropout": dropout,
        }
        self.conditioning = Conditioning(4 * width)
        self.entry = conv(dims, channels, width, 3)
        self.down = nn.ModuleList(
            nn.ModuleList(
                Stage(dims, i, c, 4 * width, dropout, head_width=head_width if level in attention else None)
                for i in into
            )
            for level, (c, into, _) in enumerate(levels(width, widths, blocks))
        )
        self.norm = GroupNorm(widths[-1])
        self.exit = zeroed(nn.Linear(widths[-1], outputs))

    def features(self, x, noise):
        """What the last layer reads, (B, width of the last level)."""
        dtype = self.entry.weight.dtype
        embedding = self.conditioning(noise).to(dtype)
        h = self.entry(channels_last(x.to(dtype)))
        for level, stages in enumerate(self.down):
            h = halve(h) if level else h
            for stage in stages:
                h = stage(h, embedding, None)
        return F.silu(self.norm(h)).flatten(2).mean(2)

    def forward(self, x, noise, cond=None):
        """x (B, channels, *space) of unit variance, noise angle (B,) in [0, pi/2]; cond is not looked at."""
        return self.exit(self.features(x, noise)).to(x.dtype)
