"""The reference probability flow for a denoiser that is known exactly.

With the angle w = atan2(sigma, alpha) the normalised state z = x / |(alpha, sigma)| = cos(w) x_0 + sin(w) eps moves as

    dz/dw = -sin(w) D + cos(w) eps,     eps = (z - cos(w) D) / sin(w),     D = E[x_0 | z],

that is dz/dw = (cos(w) z - D) / sin(w). The clock c = log tan(w / 2), with dw/dc = sin(w), removes the denominator:

    dz/dc = cos(w) z - D.

Nothing is left of the schedule, pure noise (w = pi/2) is c = 0, and the stiffness near the data is gone. It is solved
by the classical fourth-order Runge-Kutta rule in uniform steps of c. Clean data is c = -inf: below the angle `floor`
the belief D no longer moves, and one arc with D and eps held constant is taken instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def reference_flow(
    mean: Callable[[Tensor, Tensor, Tensor], Tensor], z: Tensor, start: Tensor, end: Tensor, steps: int, floor: float
) -> Tensor:
    """z (B, D) carried from the angles start (B,) to end (B,) in `steps` steps, each of 4 evaluations of the mean.

    mean(z, alpha, sigma): E[x_0 | z] for z = alpha x_0 + sigma eps with (alpha, sigma) = (cos w, sin w).
    """

    def slope(c: Tensor, z: Tensor) -> Tensor:
        # cos w = -tanh c and sin w = 1 / cosh c
        alpha, sigma = -torch.tanh(c), 1 / torch.cosh(c)
        return alpha[:, None] * z - mean(z, alpha, sigma)

    def arc(z: Tensor, w: Tensor, to: Tensor) -> Tensor:
        ratio = torch.where(w > 0, to.sin() / w.sin(), 0.0)
        ratio = torch.where(w == to, 1.0, ratio)
        return ratio[:, None] * z + (to.cos() - ratio * w.cos())[:, None] * mean(z, w.cos(), w.sin())

    first, last = start.clamp_min(floor), end.clamp_min(floor)
    # two ends below the floor are joined by one arc, with nothing in between
    first, last = (torch.where((start < floor) & (end < floor), end, inner) for inner in (first, last))
    z = arc(z, start, first)
    c, c_last = (torch.log(torch.tan(w / 2)) for w in (first.clamp_min(1e-300), last.clamp_min(1e-300)))
    h = ((c_last - c) / steps)[:, None]
    for n in range(steps):
        now, half, then = (c + (c_last - c) * (share / steps) for share in (n, n + 0.5, n + 1))
        k1 = slope(now, z)
        k2 = slope(half, z + h / 2 * k1)
        k3 = slope(half, z + h / 2 * k2)
        k4 = slope(then, z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return arc(z, last, end)
