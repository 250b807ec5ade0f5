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
    """Reads the tokens, of width `width` (0: the network takes none), out of a condition and standardises each."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.norm = LayerNorm(width) if width else None

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
        q, k, v = qkv = split(self.qkv(x), 3, self.heads)
        if turns is not None:
            q, k = rotate(qkv[:2], turns)
        mask = None
        if tokens is not None:
            more_k, more_v = split(self.kv(tokens.values), 2, self.heads)
            k, v = torch.cat([k, more_k], dim=2), torch.cat([v, more_v], dim=2)
            if tokens.mask is not None:
                own = tokens.mask.new_ones(x.shape[:2])
                mask = torch.cat([own, tokens.mask], dim=1)[:, None, None]
        return self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2))


def split(x, parts: int, heads: int):
    """x (B, N, parts * heads * d) as (parts, B, heads, N, d)."""
    return x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)
