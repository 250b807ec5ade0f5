"""Conditions that are pictures, and the plainest way to show them to a network: beside the state, as further channels.

A condition picture arrives as `cond[name]` (B, channels, *space), of the state's size; a missing one is zeros, "nothing
is known" (`backdrift.data.derived`). For a network that is trained with it from the beginning; `control` is for one
that is trained already.
"""

from collections.abc import Mapping

import torch
from torch import nn

from backdrift.errors import UserError


class Beside(nn.Module):
    """`net` shown the conditions `pictures` (name: channels) behind the channels of x.

    net: made for as many channels more. `pictures` is read by whoever gives conditions.
    """

    def __init__(self, net: nn.Module, pictures: Mapping[str, int]):
        super().__init__()
        self.net, self.pictures = net, dict(pictures)

    def forward(self, x, noise, cond=None):
        """As the net's own. UserError: a condition of another shape."""
        return self.net(torch.cat([x, gather(self.pictures, x, cond)], 1), noise, cond)


def gather(pictures: Mapping[str, int], x, cond):
    """The condition pictures for the states x (B, C, *space) in one tensor, zeros for those that are missing.

    UserError: a condition of another shape.
    """
    found = []
    for name, channels in pictures.items():
        shape = (len(x), channels, *x.shape[2:])
        value = (cond or {}).get(name)
        if value is None:
            value = x.new_zeros(shape)
        if tuple(value.shape) != shape:
            raise UserError(f"The condition {name!r} must have shape {shape}, not {tuple(value.shape)}.")
        found.append(value.to(x))
    return torch.cat(found, 1)
