"""Distances between two sets of feature vectors: Fréchet, kernel (MMD) and sliced Wasserstein.

Each compares samples of two distributions through their features, and none is zero for two finite sets from
the same distribution: the Fréchet distance is biased upwards by roughly (1/n + 1/m) times a constant, the kernel
distance is unbiased but noisy, the sliced Wasserstein distance falls like 1/sqrt(n). So a figure means
something only next to its floor, what a fresh real set of the same size gets (see `report`).

Everything here runs in float64, takes (n, F) and (m, F) tensors and returns a float.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between the Gaussians fitted to `a` (n, F) and `b` (m, F), in squared feature units.

    ||mean_a - mean_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): Heusel et al. 2017, eq. 6, with the unbiased
    covariances (division by n - 1). It is called FID only when the features are Inception's.
    """
    a, b = a.double(), b.double()
    return _frechet(a.mean(0) - b.mean(0), _factor(a), _factor(b))


def frechet_of_moments(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The same distance from given means (F,) and covariances (F, F): exact for Gaussians."""
    factors = []
    for cov in (cov_a, cov_b):
        values, vectors = torch.linalg.eigh(cov.double())
        factors.append(values.clamp_min(0).sqrt()[:, None] * vectors.T)
    return _frechet(mean_a.double() - mean_b.double(), *factors)


def _factor(x: Tensor) -> Tensor:
    """A matrix R (min(n, F), F) with R^T R equal to the covariance of the rows of `x` (n, F)."""
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred


def _frechet(gap: Tensor, a: Tensor, b: Tensor) -> float:
    # With C_a = A^T A and C_b = B^T B the eigenvalues of C_a C_b are the squared singular values of A B^T,
    # so tr (C_a C_b)^(1/2) is their sum. No square root of a nearly singular product is taken, which is
    # where a matrix square root loses half of the digits when there are fewer pictures than features.
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return float((gap.square().sum() + a.square().sum() + b.square().sum() - 2 * cross).clamp_min(0))


def kernel_distance(a: Tensor, b: Tensor, block: int = 2048) -> float:
    """Unbiased squared MMD of `a` (n, F) and `b` (m, F) with the kernel k(x, y) = (x.y / F + 1)^3.

    The kernel of KID (Binkowski et al. 2018, section 4) in the estimator of Gretton et al. 2012, eq. 3, on all
    pairs rather than on subsets. It can be negative; its expectation is zero when both sets have the same law.
    Extra memory: `block` rows of the kernel matrix.
    """
    a, b = a.double(), b.double()
    n, m = len(a), len(b)
    within_a = (_kernel_sum(a, a, block) - float(_cubic((a * a).mean(1)).sum())) / (n * (n - 1))
    within_b = (_kernel_sum(b, b, block) - float(_cubic((b * b).mean(1)).sum())) / (m * (m - 1))
    return within_a + within_b - 2 * _kernel_sum(a, b, block) / (n * m)


def _cubic(products: Tensor) -> Tensor:
    shifted = products + 1
    return shifted * shifted * shifted


def _kernel_sum(a: Tensor, b: Tensor, block: int) -> float:
    return sum(float(_cubic(rows @ b.T / a.shape[1]).sum()) for rows in a.split(block))


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 256, seed: int = 0, p: float = 2.0) -> float:
    """Sliced Wasserstein-p distance of `a` (n, F) and `b` (m, F): (mean over directions of W_p^p)^(1/p).

    Bonneel et al. 2015, section 3, by Monte Carlo over `projections` random directions drawn from `seed`; two
    calls with one seed use the same directions. On each line W_p is exact, also when n and m differ: the
    integral over u in [0, 1] of |quantile_a(u) - quantile_b(u)|^p. The unit is that of the features.
    """
    a, b = a.double().cpu(), b.double().cpu()
    directions = torch.randn(
        a.shape[1], projections, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    directions /= directions.norm(dim=0)
    sorted_a, sorted_b = (a @ directions).sort(0).values, (b @ directions).sort(0).values
    # Both quantile functions are constant between the points i/n and j/m. In units of 1/(n m) these are
    # integers, so that common points coincide exactly.
    n, m = len(a), len(b)
    edges = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    left, width = edges[:-1], edges.diff().double() / (n * m)
    gaps = (sorted_a[left // m] - sorted_b[left // n]).abs() ** p
    return float((width @ gaps).mean() ** (1 / p))
