"""The linear-Gaussian measurement y = A x_0 + n, n ~ N(0, cov): the one under which mixtures stay mixtures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backdrift.errors import UserError

ROWS = 4096  # rows converted to float64 at a time


class LinearGaussian:
    """y = A x + n over flattened events.

    A: (m, D). noise_std: the noise's standard deviation, a number or (m,); or instead cov: (m, m), its covariance.

    Raises `UserError` unless the noise is positive (definite).
    """

    def __init__(self, A: Tensor, noise_std: float | Tensor | None = None, cov: Tensor | None = None):
        if A.ndim != 2:
            raise UserError(f"A measurement matrix has two axes (m, D), not the shape {tuple(A.shape)}.")
        if (noise_std is None) == (cov is None):
            raise UserError("Give either noise_std or cov, and not both.")
        self.A = A.double()
        m = len(A)
        if cov is None:
            std = torch.as_tensor(noise_std, dtype=torch.float64, device=A.device)
            if std.ndim > 1 or (std.ndim == 1 and len(std) != m):
                raise UserError(f"noise_std must be one number or {m} numbers, not the shape {tuple(std.shape)}.")
            if not bool((std > 0).all()):
                raise UserError("The measurement's noise must be positive; a nearly exact one may be as small as 1e-6.")
            cov = torch.diag(std.expand(m) ** 2)
        self.cov = cov.double()
        if self.cov.shape != (m, m) or not torch.allclose(self.cov, self.cov.mT):
            raise UserError(f"The noise covariance must be a symmetric ({m}, {m}) matrix.")
        self._factor, failed = torch.linalg.cholesky_ex(self.cov)
        if failed:
            raise UserError("The noise covariance must be positive definite.")

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x), (N,) float64, normalised in y; x: (N, *event), y: (m,)."""
        flat = x.reshape(len(x), -1)
        if flat.shape[1] != self.A.shape[1]:
            raise UserError(f"The measurement takes events of {self.A.shape[1]} numbers, not {flat.shape[1]}.")
        return torch.cat([gaussian_log_prob(self.gap(part, y), self._factor) for part in flat.split(ROWS)])

    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        """y - A x, (N, m) float64; x: (N, D), y: (m,)."""
        if y.numel() != len(self.A):
            raise UserError(f"The measurement gives {len(self.A)} numbers, but y has {y.numel()}.")
        return y.flatten().double() - x.double() @ self.A.mT


def linear_gaussian(measurement) -> LinearGaussian:
    """A measurement as matrices: it is one, or its .linear_gaussian() gives one. Raises `UserError` for any other."""
    if isinstance(measurement, LinearGaussian):
        return measurement
    if not hasattr(measurement, "linear_gaussian"):
        raise UserError(
            f"This prior has a closed-form posterior under linear measurements with Gaussian noise only, not under "
            f"{type(measurement).__name__}; atoms without a bandwidth have one under any."
        )
    return measurement.linear_gaussian()


def gaussian_log_prob(gap: Tensor, factor: Tensor) -> Tensor:
    """log N(gap; 0, factor factor^T), (N,); gap: (N, m), factor: (m, m) lower triangular, or (N, m, m), one each."""
    if factor.ndim == 2:
        white = torch.linalg.solve_triangular(factor, gap.mT, upper=False).mT
    else:
        white = torch.linalg.solve_triangular(factor, gap.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -(white.square().sum(-1) + log_det + gap.shape[-1] * math.log(2 * math.pi)) / 2
