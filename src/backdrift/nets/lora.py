"""Low-rank adapters: a trained network specialised by a few numbers beside its weights, which stay as they are.

To each weight matrix W (outputs x inputs; a convolution's with its kernel among the inputs) an adapter adds

    W + strength (alpha / rank) B A,    A: rank x inputs,  B: outputs x rank,

with A random and B zero at first, so that training starts at the network itself. Hu et al. 2021, arXiv:2106.09685,
section 4.1. The sum is formed in each pass and the network called with it, which serves every layer of every network
alike; `merged` forms it once.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.func import functional_call

from backdrift.errors import UserError


class LowRank(nn.Module):
    """`base` with adapters for all of its weight matrices; the adapters alone are this module's weights.

    rank: of each adapter, at most. alpha: the scale at which they act is alpha / rank. strength: a further factor, not
    kept in files: 0 is the base, 1 what was trained.

    UserError: a rank below 1.
    """

    def __init__(self, base: nn.Module, rank: int = 4, alpha: float | None = None):
        super().__init__()
        if rank < 1:
            raise UserError(f"The rank of an adapter is at least 1, not {rank}.")
        # not registered: its weights are neither trained nor saved, and move with the adapter's (`_apply`)
        object.__setattr__(self, "base", base.requires_grad_(False).eval())
        self.rank, self.alpha, self.strength = rank, float(rank if alpha is None else alpha), 1.0
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in adapted(base).items():
            outputs, inputs = len(weight), weight[0].numel()
            used = min(rank, outputs, inputs)
            a = torch.randn(used, inputs, dtype=weight.dtype, device=weight.device) / math.sqrt(inputs)
            self.down[key(name)], self.up[key(name)] = nn.Parameter(a), nn.Parameter(weight.new_zeros(outputs, used))

    @property
    def pictures(self):
        """The condition pictures that the base takes."""
        return getattr(self.base, "pictures", {})

    @property
    def told(self):
        """The further angles that the base heeds."""
        return getattr(self.base, "told", ())

    def _apply(self, fn, recurse=True):
        self.base._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def weights(self) -> dict[str, torch.Tensor]:
        """The base's weight matrices with the adapters added, by name."""
        scale = self.strength * self.alpha / self.rank
        return {
            name: weight + (scale * self.up[key(name)] @ self.down[key(name)]).view(weight.shape)
            for name, weight in adapted(self.base).items()
        }

    def merged(self) -> nn.Module:
        """A network like the base, with the adapters in its weights."""
        net = copy.deepcopy(self.base)
        with torch.no_grad():
            for name, weight in self.weights().items():
                net.get_parameter(name).copy_(weight)
        return net

    def forward(self, x, noise, cond=None):
        """As the base's own."""
        return functional_call(self.base, self.weights(), (x, noise, cond))


def adapted(base: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are adapted, by name: of linear layers and convolutions, embeddings of labels left out."""
    tables = {id(m.weight) for m in base.modules() if isinstance(m, nn.Embedding)}
    named = base.named_parameters()
    return {n: w for n, w in named if w.ndim > 1 and n.endswith("weight") and id(w) not in tables}


def key(name: str) -> str:
    """A parameter's name as a key of `ParameterDict`, which takes no dots."""
    return name.replace(".", "/")
