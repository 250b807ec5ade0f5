"""Where a token is: sines added to it, and rotations of its queries and keys.

Attention sees a set. Sines of each coordinate at several frequencies, added once, tell a token where it is. A rotary
position turns each pair of numbers of a query or key by an angle proportional to one coordinate; a product of a
turned query and a turned key depends on the difference of their positions only (Su et al. 2021, arXiv:2104.09864,
eq. 16), so that attention sees distances. Every axis of the space has its own share of the frequencies.
"""

import torch

SLOWEST = 100.0  # steps per radian of the lowest frequency: ample for a side of a few hundred patches


def grid(sizes: tuple[int, ...], device=None):
    """Coordinates of all points of a grid, row by row: (N, axes), float32."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in sizes]
    return torch.cartesian_prod(*axes).view(-1, len(sizes))


def phases(positions, count: int):
    """Angles of positions (N, axes), `count` per axis, at frequencies from 1 down to 1 / SLOWEST: (N, axes, count)."""
    exponents = torch.arange(count, dtype=torch.float32, device=positions.device) / count
    return positions[:, :, None] * SLOWEST**-exponents


def sines(positions, width: int):
    """Sines and cosines of positions (N, axes): (N, width); zeros at the end where the axes do not share it evenly."""
    angles = phases(positions, width // (2 * positions.shape[1])).flatten(1)
    features = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(features, (0, width - features.shape[1]))


def turns(positions, width: int):
    """Cosines and sines that turn vectors of `width` at positions (N, axes): a pair of (N, width // 2).

    Pairs that the axes do not share evenly stay unturned.
    """
    angles = phases(positions, width // (2 * positions.shape[1])).flatten(1)
    angles = torch.nn.functional.pad(angles, (0, width // 2 - angles.shape[1]))
    return angles.cos(), angles.sin()


def rotate(x, turns):
    """x (..., N, M width): the i-th and (i + width / 2)-th numbers of each of M vectors turned as a pair by `turns`.

    All vectors of a place go through each operation as one row: rows of a single vector are too short to be fast.
    """
    cos, sin = turns
    width = 2 * cos.shape[1]
    count = x.shape[-1] // width
    cos = torch.cat([cos, cos], dim=1).repeat(1, count).to(x.dtype)
    sin = torch.cat([-sin, sin], dim=1).repeat(1, count).to(x.dtype)
    swapped = x.unflatten(-1, (count, width)).roll(width // 2, -1).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin)
