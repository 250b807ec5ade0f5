"""Learned uncertainty: the loss at every noise level is divided by what it is on average there, which is learned too.

    total = loss / exp(u) + u,      u a function of the noise level alone

For a fixed network the best u is the log of the expected loss at that level, where every level contributes 1: so the
weights follow the training, and no level drowns the others. The gradient that the network sees is that of log E loss.
Karras et al. 2024, arXiv:2312.02696; Kendall and Gal 2017, arXiv:1703.04977, Eq. 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.schedule import Schedule

ENDS = (-7.0, 7.0)  # of log(sigma / (alpha sigma_data)): beyond, a picture is clean or pure noise to three digits
GAIN = 16.0  # u per unit of a parameter: an optimiser's step is about its rate, and log losses are several units away


@kind("uncertainty.Uncertainty")
@dataclass(frozen=True)
class Uncertainty:
    """u is a polygon over log(sigma / (alpha sigma_data)) with `nodes` corners, zero before training."""

    nodes: int = 48

    def __post_init__(self):
        if self.nodes < 2:
            raise UserError(f"A learned uncertainty needs at least 2 nodes, not {self.nodes}.")


class LogLoss(nn.Module):
    """The polygon: forward(schedule, t) is u at the times t (B,), in float32 on the parameters' device."""

    def __init__(self, nodes: int, sigma_data: float):
        super().__init__()
        self.sigma_data = sigma_data
        self.corners = nn.Parameter(torch.zeros(nodes))

    def forward(self, schedule: Schedule, t: Tensor) -> Tensor:
        low, high = ENDS
        level = (-schedule.logsnr(t) / 2 - math.log(self.sigma_data)).clamp(low, high)
        place = (level - low) / (high - low) * (len(self.corners) - 1)
        left = place.floor().long().clamp_max(len(self.corners) - 2)
        share = (place - left).to(self.corners)
        left = left.to(self.corners.device)
        return GAIN * torch.lerp(self.corners[left], self.corners[left + 1], share)
