"""Attention of positions to each other, and to the tokens of a condition beside them.

A condition of many parts, such as the words of a text, arrives as `cond["tokens"]` (B, M, E), with
`cond["tokens_mask"]` (B, M), True where there is a token, if the samples have different numbers of them. Each
attention makes keys and values from these tokens and appends them to those of its own positions, so that one softmax
shares a query's attention between the picture and the condition (Nichol et al. 2021, arXiv:2112.10741, section 3.1).
No tokens and nothing but masked ones are then the same: the picture looks at itself alone, which is the unconditional
call that guidance needs. Tokens are a set: whoever makes them adds their positions, if these matter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdrift.errors import UserError
from backdrift.nets.blocks import LayerNorm, attention, zeroed
from backdrift.nets.positions import rotate


@dataclass(frozen=True)
class Tokens:
    """The parts of a condition: values (B, M, E), and mask (B, M), True where there is one, or None for all."""

    values: Tensor
    mask: Tensor | None


class ConditionTokens(nn.Module):
    """Reads the tokens, of width `width` (0: the network takes none), out of a condition and standardises each.

    affine: scale and shift them afterwards, as learned.
    """

    def __init__(self, width: int, *, affine: bool = True):
        super().__init__()
        self.width = width
        self.norm = LayerNorm(width, affine=affine) if width else None

    def forward(self, x, cond) -> Tokens | None:
        """The tokens for the samples x (B, ...), in x's dtype; None where there are none. UserError: other shapes."""
        values, mask = (cond or {}).get("tokens"), (cond or {}).get("tokens_mask")
        if values is None:
            return None
        if self.width == 0:
            raise UserError("This network was built without condition tokens; leave the tokens out.")
        if values.ndim != 3 or values.shape[::2] != (len(x), self.width):
            raise UserError(f"Tokens must be ({len(x)}, any number, {self.width}), not {tuple(values.shape)}.")
        if mask is not None and (mask.shape != values.shape[:2] or mask.dtype != torch.bool):
            raise UserError(f"The mask of tokens must be {tuple(values.shape[:2])} of True and False.")
        return Tokens(self.norm(values.to(x.dtype)), mask)


class Attention(nn.Module):
    """x (B, N, channels) -> the same, by heads of `head_width` channels.

    tokens: width of the condition's tokens, 0 for none. zero: start as nothing.
    """

    def __init__(self, channels: int, head_width: int, tokens: int = 0, *, zero: bool = True):
        super().__init__()
        self.heads = channels // head_width
        self.qkv = nn.Linear(channels, 3 * channels)
        out = nn.Linear(channels, channels)
        self.out = zeroed(out) if zero else out
        self.kv = nn.Linear(tokens, 2 * channels) if tokens else None

    def forward(self, x, tokens: Tokens | None = None, turns=None):
        """turns: the cosines and sines of rotary positions (see `positions.rotate`), for those who use them."""
        channels = x.shape[2]
        qk, v = self.qkv(x).split([2 * channels, channels], dim=2)
        if turns is not None:
            qk = rotate(qk, turns)
        (q, k), (v,) = split(qk, 2, self.heads), split(v, 1, self.heads)
        mask = None
        if tokens is not None:
            k, v, mask = appended(k, v, split(self.kv(tokens.values), 2, self.heads), tokens.mask)
        return self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2))


def split(x, parts: int, heads: int):
    """x (B, N, parts * heads * d) as (parts, B, heads, N, d)."""
    return x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def appended(k, v, more, mask):
    """Keys and values (B, heads, N, d) of the positions, then `more` (2, B, heads, M, d) of tokens with mask (B, M).

    Returns keys, values and where attention may look: (B, 1, 1, N + M), or None for everywhere.
    """
    if mask is not None:
        own = mask.new_ones(len(k), k.shape[2])
        mask = torch.cat([own, mask], dim=1)[:, None, None]
    return torch.cat([k, more[0]], dim=2), torch.cat([v, more[1]], dim=2), mask
