"""Means of the loss, in all and by noise level, between two lines of `metrics.jsonl`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backdrift.schedule import Schedule

BINS = 8  # equal stretches of the noise angle atan2(sigma, alpha std), from clean to pure noise
ANGLES = tuple(90 * (k + 0.5) / BINS for k in range(BINS))  # their middles, in degrees


def new_window(device: torch.device | str = "cpu") -> Tensor:
    """An empty window: (BINS, 2), the sum and the number of the losses in each bin, weighted by their shares."""
    return torch.zeros(BINS, 2, dtype=torch.float64, device=device)


def add(window: Tensor, losses: Tensor, t: Tensor, schedule: Schedule, std: float, share: float | Tensor = 1.0) -> None:
    """Put losses (B,) at times t (B,) into the window, in place and without waiting for an accelerator.

    share: what each counts for, a number or (B,).
    """
    alpha, sigma = schedule.alpha_sigma(t)
    bins = (torch.atan2(sigma, alpha * std) * (BINS / (math.pi / 2))).long().clamp(0, BINS - 1)
    count = torch.as_tensor(share, dtype=torch.float64, device=losses.device).expand(len(losses))
    values = torch.stack([losses.detach().double() * count, count], 1)
    window.index_add_(0, bins.to(window.device), values)


def means(window: Tensor) -> tuple[float | None, list[float | None]]:
    """The mean of all losses in the window and that of each bin; None where there were none."""
    rows = window.tolist()
    total = [sum(column) for column in zip(*rows, strict=True)]
    return _mean(*total), [_mean(*row) for row in rows]


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
