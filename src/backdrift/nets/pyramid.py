"""The walk of every U-Net: down a pyramid of resolutions and up again, with a bridge across at each block.

On the way down each level halves the picture, on the way up it doubles it, and every block on the way up also sees
the output of its mirror image on the way down. Odd sizes are rounded up on the way down and cut to the mirror's size
on the way up, so any picture fits. Signals (B, C, L), pictures (B, C, H, W) and volumes (B, C, D, H, W) differ only
in the operations named here.
"""

import torch
import torch.nn.functional as F
from torch import nn

from backdrift.errors import UserError

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def conv(dims: int, channels_in: int, channels_out: int, kernel: int):
    """A convolution over `dims` axes that keeps the size."""
    return CONV[dims - 1](channels_in, channels_out, kernel, padding=kernel // 2)


def halve(x):
    """x (B, C, *space) at half the resolution, sizes rounded up: averages over what there is."""
    pool = POOL[x.ndim - 3]
    y = x.float() if x.ndim == 5 and x.dtype == torch.bfloat16 else x  # torch pools volumes in no bf16 on a CPU
    return pool(y, 2, ceil_mode=True, count_include_pad=False).to(x.dtype)


def double(x):
    """x (B, C, *space) at twice the resolution, by repetition."""
    return F.interpolate(x, scale_factor=2)


def cut(x, like):
    """x (B, C, *space), its far ends cut off to the sizes of `like`."""
    for axis in range(2, x.ndim):
        x = x.narrow(axis, 0, like.shape[axis])
    return x


def channels_last(x):
    """x (B, C, *space) laid out with its channels next to each other; written so that `torch.vmap` sees through it."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def levels(width: int, widths: list[int], blocks: int):
    """Per level: its channels, and what each of its blocks reads on the way down and on the way up."""
    for c, before, below in zip(widths, [width, *widths], [*widths[1:], widths[-1]], strict=False):
        yield c, [before] + [c] * (blocks - 1), [below + c] + [2 * c] * (blocks - 1)


def descend(x, down, middle, *, smaller, told):
    """Down and through the middle: the outputs of all blocks on the way down, and of the middle.

    down: the blocks of each level, level 0 first; each is called as block(x, *told). smaller[i]: from level i to
    level i + 1, called likewise.
    """
    seen = []
    for level, blocks in enumerate(down):
        if level:
            x = smaller[level - 1](x, *told)
        for block in blocks:
            x = block(x, *told)
            seen.append(x)
    for block in middle:
        x = block(x, *told)
    return seen, x


def ascend(x, seen, up, *, larger, join, told):
    """Up from the middle's output x; returns the last block's output.

    seen: what `descend` returned. up: the blocks of each level, level 0 first. larger[i]: from level i + 1 to level i.
    join(x, mirror): what a block on the way up reads.
    """
    seen = list(seen)
    for level in reversed(range(len(up))):
        if level + 1 < len(up):
            x = cut(larger[level](x, *told), seen[-1])
        for block in up[level]:
            x = block(join(x, seen.pop()), *told)
    return x


def check(channels, dims, widths, blocks, attention, head_width, dropout, classes, tokens):
    """UserError for a choice that no U-Net can be built from."""
    if channels < 1 or blocks < 1 or not widths or min(widths) < 1 or min(classes, tokens) < 0:
        raise UserError(
            "A U-Net needs at least one channel, one level and one block per level, and no negative number of "
            "classes or tokens."
        )
    if dims not in (1, 2, 3):
        raise UserError(f"A U-Net works on 1, 2 or 3 dimensions, not {dims}.")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout is a share, from 0 to less than 1, not {dropout}.")
    if tokens and not attention:
        raise UserError("Condition tokens are read by attention; give the U-Net a level with attention.")
    missing = [level for level in attention if not 0 <= level < len(widths)]
    if missing:
        raise UserError(f"Attention was asked for at level {missing[0]}, but levels run from 0 to {len(widths) - 1}.")
    uneven = [widths[level] for level in attention if head_width < 1 or widths[level] % head_width]
    if uneven:
        raise UserError(f"Attention over {uneven[0]} channels cannot be split into heads of width {head_width}.")
