"""How near one picture is to another, as restoration reports it; nothing of whether a spread can be believed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from backdrift.errors import UserError
from backdrift.posterior import flat


def psnr(x: Tensor, truth: Tensor, span: float = 2.0) -> Tensor:
    """10 log10(span^2 / mean squared error), (B,), in dB; x, truth: (B, C, H, W) of a range of `span`."""
    error = flat(x - truth).double().square().mean(1)
    return 10 * torch.log10(span**2 / error)


def ssim(x: Tensor, truth: Tensor, span: float = 2.0) -> Tensor:
    """Structural similarity, (B,), with Gaussian windows of 11 x 11 and standard deviation 1.5, inside the picture.

    Smaller pictures have the largest odd window that fits. Wang et al. 2004, doi:10.1109/TIP.2003.819861, Eq. 13.

    Raises `UserError` for shapes that differ.
    """
    if x.shape != truth.shape or x.ndim != 4:
        raise UserError(f"Structural similarity compares pictures of one shape, not {x.shape} and {truth.shape}.")
    side = min(11, *(n - 1 + n % 2 for n in x.shape[-2:]))
    place = torch.arange(side, dtype=torch.float64, device=x.device) - side // 2
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    window = (line[:, None] * line[None] / line.sum() ** 2)[None, None]

    def mean(v: Tensor) -> Tensor:
        return F.conv2d(v.flatten(0, 1)[:, None], window).view(*v.shape[:2], -1)

    a, b = x.double(), truth.double()
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    both = mean(a * b) - mean_a * mean_b
    first, second = (0.01 * span) ** 2, (0.03 * span) ** 2
    score = (2 * mean_a * mean_b + first) * (2 * both + second)
    return (score / ((mean_a**2 + mean_b**2 + first) * (var_a + var_b + second))).mean((1, 2))
