"""Text for networks: a small transformer over the numbers of a text, and the network that is told what it says.

The transformer is an ordinary encoder: every piece of the text looks at every other one, twice or three times. What it
makes of each piece becomes a token beside the picture's own positions (`look`), and the mean over the pieces is added
to what the network is told of the noise, so that a word acts everywhere at once while attention learns which word
belongs to which thing. It is trained with the network, by the network's loss alone.

A text of nothing is no text: all tokens are masked and the mean is zero, which is exactly the call without text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from backdrift.errors import UserError
from backdrift.nets.blocks import LayerNorm, attention, zeroed


class TextBlock(nn.Module):
    """Attention among the pieces h (B, M, width), then a network of two layers; mask: (B, 1, M, M)."""

    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.head_width = head_width
        self.norm, self.norm_out = LayerNorm(width), LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zeroed(nn.Linear(width, width))
        self.first = nn.Linear(width, 4 * width)
        self.second = zeroed(nn.Linear(4 * width, width))

    def forward(self, h, mask):
        q, k, v = self.qkv(self.norm(h)).unflatten(2, (3, -1, self.head_width)).permute(2, 0, 3, 1, 4)
        h = h + self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return h + self.second(F.gelu(self.first(self.norm_out(h))))


class TextTransformer(nn.Module):
    """numbers (B, M), M up to `length` -> what each piece says (B, M, width), and where there is one (B, M).

    size: how many numbers there are; 0 is nothing. UserError: widths that do not divide; other numbers.
    """

    def __init__(self, size: int, length: int, width: int, depth: int, head_width: int = 32):
        super().__init__()
        if min(size, length, width, depth, head_width) < 1 or width % head_width:
            raise UserError(f"A text transformer of width {width} cannot have heads of width {head_width}.")
        self.size, self.length, self.width = size, length, width
        self.pieces = nn.Embedding(size, width)
        self.places = nn.Parameter(torch.randn(length, width))
        self.blocks = nn.ModuleList(TextBlock(width, head_width) for _ in range(depth))
        self.norm = LayerNorm(width)

    def forward(self, text):
        if text.ndim != 2 or text.is_floating_point() or text.shape[1] > self.length:
            raise UserError(f"A text is (B, up to {self.length}) numbers, not {text.dtype} of {tuple(text.shape)}.")
        there = text != 0
        # a piece of nothing looks at itself: every query needs somewhere to look
        itself = torch.eye(text.shape[1], dtype=torch.bool, device=text.device)
        mask = (there[:, None, :] | itself)[:, None]
        h = self.pieces(text.long()) + self.places[: text.shape[1]]
        for block in self.blocks:
            h = block(h, mask)
        return self.norm(h), there


class GivenText(nn.Module):
    """What somebody else's encoder made: text (B, M, width + 1), the last number being 1 for a piece and 0 for none."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, text):
        if text.ndim != 3 or text.shape[2] != self.width + 1:
            raise UserError(f"An encoded text is (B, any number, {self.width + 1}), not {tuple(text.shape)}.")
        return text[..., :-1], text[..., -1] > 0


class Reading(nn.Module):
    """`net`, told what `reader` makes of cond["text"]; without a text it is `net` itself.

    The net finds cond["tokens"] (B, M, width), cond["tokens_mask"] (B, M), and cond["summary"] (B, width), the mean
    over what is there.
    """

    def __init__(self, net: nn.Module, reader: nn.Module):
        super().__init__()
        self.net, self.reader = net, reader

    @property
    def conditioning(self):
        """The net's own, where it has one."""
        return self.net.conditioning

    @property
    def config(self):
        """The net's own."""
        return self.net.config

    @property
    def told(self):
        """What further angles the net says that it heeds."""
        return self.net.told

    def forward(self, x, noise, cond=None):
        if not cond or "text" not in cond:
            return self.net(x, noise, cond)
        if len(cond["text"]) != len(x):
            raise UserError(f"There are {len(cond['text'])} texts for {len(x)} samples; give one each.")
        tokens, there = self.reader(cond["text"].to(x.device))
        rest = {name: value for name, value in cond.items() if name != "text"}
        told = {"tokens": tokens, "tokens_mask": there, "summary": mean_of(tokens, there)}
        return self.net(x, noise, {**rest, **told})


def mean_of(tokens, there):
    """The mean over the tokens (B, M, E) that are there (B, M): (B, E), zero where none is."""
    kept = tokens * there[:, :, None].to(tokens.dtype)
    return kept.sum(1) / there.sum(1, keepdim=True).clamp_min(1).to(tokens.dtype)
