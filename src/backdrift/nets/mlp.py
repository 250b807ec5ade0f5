"""A residual network for points in few dimensions: the U-Net's blocks without the picture.

Each block standardises its input, is told noise level and label by scale and shift, and adds two linear layers to it,
the second of which starts at zero.
"""

import torch.nn.functional as F
from torch import nn

from backdrift.nets.blocks import Conditioning, LayerNorm, modulate, zeroed
from backdrift.nets.look import ConditionTokens


class Block(nn.Module):
    """x (B, width) plus a two-layer network of it, told the embedding (B, E) by scale and shift."""

    def __init__(self, width: int, embedding: int, dropout: float):
        super().__init__()
        self.norm = LayerNorm(width, affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.first = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.second = zeroed(nn.Linear(width, width))

    def forward(self, x, embedding):
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = F.silu(self.first(modulate(self.norm(x), scale, shift)))
        return x + self.second(self.dropout(h))


class MLP(nn.Module):
    """x (B, size), noise angle (B,), cond {"label": (B,)} or None -> (B, size); zero before training.

    size: the dimension of the points. width: of the hidden layers. blocks: two layers each. classes: number of
    labels, 0 for none. `config` is these arguments as plain JSON values: `MLP(**net.config)` builds the same network.
    """

    def __init__(self, size: int, *, width: int = 128, blocks: int = 3, dropout: float = 0.0, classes: int = 0):
        super().__init__()
        self.config = {"size": size, "width": width, "blocks": blocks, "dropout": dropout, "classes": classes}
        self.conditioning = Conditioning(width, classes)
        self.tokens = ConditionTokens(0)  # takes none
        self.entry = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width, width, dropout) for _ in range(blocks))
        self.norm = LayerNorm(width)
        self.exit = zeroed(nn.Linear(width, size))

    def forward(self, x, noise, cond=None):
        """Returns x's shape and dtype. UserError: a label that does not exist; tokens."""
        dtype = self.entry.weight.dtype
        embedding = self.conditioning(noise, cond).to(dtype)
        self.tokens(x, cond)
        h = self.entry(x.to(dtype))
        for block in self.blocks:
            h = block(h, embedding)
        return self.exit(F.silu(self.norm(h))).to(x.dtype)
