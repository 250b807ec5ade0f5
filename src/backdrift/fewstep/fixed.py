"""A module seen as a plain function: gradients pass through what it is given, and stop at its weights."""

from __future__ import annotations

import torch
from torch import nn


class Fixed:
    """`module` with its weights, as they are now, detached."""

    def __init__(self, module: nn.Module):
        self.module, self.weights = module, {name: x.detach() for name, x in module.named_parameters()}

    def __call__(self, *inputs):
        return torch.func.functional_call(self.module, self.weights, inputs)
