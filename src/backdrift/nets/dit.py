"""A transformer for signals, pictures and volumes cut into patches.

Each patch becomes one token; `registers` further tokens belong to no place and serve as scratch space (Darcet et al.
2023, arXiv:2309.16588). Noise level and label act on every block through adaLN-Zero: scale and shift after each norm,
and a gate in front of each sum, all six read off the embedding by a layer that starts at zero, so that the blocks
start as the identity and the network as exactly zero (Peebles & Xie 2022, arXiv:2212.09748, section 3.2). Positions
are sines added at the entry and, where wanted, rotations inside attention (`positions`). A space that patches do not
fill is padded with zeros at its far ends, and the output cut.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from backdrift.errors import UserError
from backdrift.nets import positions
from backdrift.nets.blocks import Conditioning, LayerNorm, modulate, zeroed
from backdrift.nets.look import Attention, ConditionTokens


class Block(nn.Module):
    """x (B, N, width) after attention and a two-layer network, both modulated by the embedding (B, E)."""

    def __init__(self, width: int, head_width: int, embedding: int, dropout: float, tokens: int):
        super().__init__()
        self.modulation = zeroed(nn.Linear(embedding, 6 * width))
        self.norm = LayerNorm(width, affine=False)  # has no weights, so both branches use it
        self.attention = Attention(width, head_width, tokens, zero=False)
        self.first = nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(4 * width, width)

    def forward(self, x, embedding, tokens, turns):
        scale, shift, gate, scale2, shift2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        x = torch.addcmul(x, gate, self.attention(modulate(self.norm(x), scale, shift), tokens, turns))
        h = F.gelu(self.first(modulate(self.norm(x), scale2, shift2)))
        return torch.addcmul(x, gate2, self.second(self.dropout(h)))


class DiT(nn.Module):
    """The network of the module's docstring: x (B, channels, *space) -> (B, outputs, *space).

    channels:   of the picture.
    outputs:    channels out, as many as in by default (a learned variance takes twice as many).
    dims:       axes of the space: 1 for signals, 2 for pictures, 3 for volumes.
    patch:      side of a patch.
    width:      of a token, a multiple of `head_width`; head_width is even.
    depth:      number of blocks.
    registers:  tokens of no place.
    rotary:     turn queries and keys by their positions.
    dropout:    inside the blocks' two-layer networks.
    classes:    number of labels; 0 for none.
    tokens:     width of the condition's tokens, which attention looks at; 0 for none.

    `config` is these arguments as plain JSON values: `DiT(**net.config)` builds the same network.
    UserError: numbers that fit no network.
    """

    def __init__(
        self,
        channels: int,
        *,
        outputs: int | None = None,
        dims: int = 2,
        patch: int = 2,
        width: int = 256,
        depth: int = 8,
        head_width: int = 64,
        registers: int = 4,
        rotary: bool = True,
        dropout: float = 0.0,
        classes: int = 0,
        tokens: int = 0,
    ):
        super().__init__()
        if min(channels, patch, width, depth, head_width) < 1 or min(registers, classes, tokens) < 0:
            raise UserError(
                "A transformer needs at least one channel, one block and patches of one pixel, and no negative "
                "number of registers, classes or tokens."
            )
        if dims not in (1, 2, 3):
            raise UserError(f"A transformer works on 1, 2 or 3 dimensions, not {dims}.")
        if head_width % 2 or width % head_width:
            raise UserError(f"A width of {width} cannot be split into heads of even width {head_width}.")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is a share, from 0 to less than 1, not {dropout}.")
        self.config = {
            "channels": channels,
            "outputs": outputs,
            "dims": dims,
            "patch": patch,
            "width": width,
            "depth": depth,
            "head_width": head_width,
            "registers": registers,
            "rotary": rotary,
            "dropout": dropout,
            "classes": classes,
            "tokens": tokens,
        }
        self.dims, self.patch, self.head_width, self.rotary = dims, patch, head_width, rotary
        self.conditioning = Conditioning(width, classes, tokens)
        self.tokens = ConditionTokens(tokens)
        self.entry = nn.Linear(channels * patch**dims, width)
        self.registers = nn.Parameter(torch.randn(registers, width)) if registers else None
        self.blocks = nn.ModuleList(Block(width, head_width, width, dropout, tokens) for _ in range(depth))
        self.norm = LayerNorm(width, affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.exit = zeroed(nn.Linear(width, (outputs or channels) * patch**dims))

    def forward(self, x, noise, cond=None, added=None):
        """x (B, channels, *space) of unit variance, noise angle (B,) in [0, pi/2].

        cond: None or {"label": (B,), "tokens": (B, M, tokens), "tokens_mask": (B, M), "summary": (B, tokens)}, each
        optional. added: what to
        add to each output of `trail` (see `control`), or None.
        Returns x's dtype. UserError: a label that does not exist, tokens of another shape.
        """
        h, sizes, told = self._enter(x, noise, cond)
        for place, block in enumerate(self.blocks):
            h = block(h, *told)
            if added is not None and place < len(added):
                h = h + added[place]
        scale, shift = self.modulation(told[0])[:, None].chunk(2, dim=2)
        h = self.exit(modulate(self.norm(h[:, : math.prod(sizes)]), scale, shift))
        return join_patches(h, sizes, self.patch, x.shape[2:]).to(x.dtype)

    def trail(self, x, noise, cond=None, hint=None):
        """The outputs of the first half of the blocks, (B, N, width). hint: added to the patches' tokens."""
        h, _, told = self._enter(x, noise, cond, hint)
        passed = []
        for block in self.blocks[: (self.config["depth"] + 1) // 2]:
            h = block(h, *told)
            passed.append(h)
        return passed

    def _enter(self, x, noise, cond, hint=None):
        """What the first block reads, how many patches there are along each axis, and what every block is told."""
        if x.ndim != 2 + self.dims:
            raise UserError(f"This transformer takes (B, C) and {self.dims} axes of space, not {tuple(x.shape)}.")
        dtype = self.entry.weight.dtype
        embedding = self.conditioning(noise, cond).to(dtype)
        patches, sizes = cut_patches(x.to(dtype), self.patch)
        places = positions.grid(sizes, x.device)
        h = self.entry(patches)
        h = h + positions.sines(places, h.shape[2]).to(h.dtype)
        if hint is not None:
            h = h + hint
        turns = positions.turns(places, self.head_width) if self.rotary else None
        if self.registers is not None:
            h = torch.cat([h, self.registers.to(h.dtype).expand(len(h), -1, -1)], dim=1)
            turns = turns and unturned(turns, len(self.registers))
        return h, sizes, (embedding, self.tokens(h, cond), turns)


def cut_patches(x, patch: int):
    """x (B, C, *space) as its patches (B, N, C patch^dims) in row order, and how many there are along each axis."""
    dims = x.ndim - 2
    missing = [-size % patch for size in x.shape[2:]]
    if any(missing):
        x = F.pad(x, [n for gap in reversed(missing) for n in (0, gap)])
    sizes = tuple(size // patch for size in x.shape[2:])
    for axis in reversed(range(2, 2 + dims)):
        x = x.unflatten(axis, (-1, patch))  # (B, C, n1, patch, n2, patch, ...)
    places, insides = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    return x.permute(0, *places, 1, *insides).flatten(1 + dims).flatten(1, dims), sizes


def join_patches(h, sizes: tuple[int, ...], patch: int, space: tuple[int, ...]):
    """The inverse of `cut_patches`: h (B, N, C patch^dims) -> (B, C, *space)."""
    dims = len(sizes)
    h = h.unflatten(2, (-1, *[patch] * dims)).unflatten(1, sizes)  # (B, n1, n2, ..., C, patch, patch, ...)
    pairs = [axis for i in range(dims) for axis in (1 + i, 2 + dims + i)]
    h = h.permute(0, 1 + dims, *pairs)
    for axis, size in enumerate(space, start=2):
        h = h.flatten(axis, axis + 1).narrow(axis, 0, size)
    return h


def unturned(turns, count: int):
    """The rotations `turns`, followed by `count` that turn nothing."""
    cos, sin = turns
    return F.pad(cos, (0, 0, 0, count), value=1.0), F.pad(sin, (0, 0, 0, count))
