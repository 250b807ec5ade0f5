"""Gaussian mixtures: sum_k pi_k N(mu_k, S_k).

Blurred to x_t = alpha x_0 + sigma eps it stays a mixture, with covariances C_k = alpha^2 S_k + sigma^2 I. In the
eigenbasis of S_k, S_k = U diag(l) U^T, every C_k is diagonal at all times. With z = U^T (x - alpha mu_k):

    log N_k = -1/2 sum (z^2 / c + log 2 pi c),   c = alpha^2 l + sigma^2
    E_k[x_0 | x] = mu_k + alpha U (l / c) z,     grad log N_k = -U (z / c),

combined with the responsibilities r_k proportional to pi_k N_k. All of it is computed in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.exact.base import Blurred, Distribution, checked_labels, normalised
from backdrift.exact.denoiser import TensorDenoiser
from backdrift.exact.measurement import gaussian_log_prob, linear_gaussian
from backdrift.process import Gaussian, Process

BLOCK = 1 << 23  # elements of a temporary (B, K', D)


class Mixture(Distribution):
    """sum_k pi_k N(mu_k, S_k).

    weights: (K,), non-negative, scaled to sum to 1. means: (K, *event); answers have their dtype.
    covs: the covariances, as variances: a number, (K,) one number per component, (K, *event) diagonals, or (K, D, D)
    full, D the size of an event. A leading 1 in place of K shares one among all. labels: (K,) class numbers, or None.

    Raises `UserError` for shapes that do not fit, or covariances that are not symmetric and positive semi-definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covs: float | Tensor, labels: Tensor | None = None):
        means = torch.as_tensor(means)
        if means.ndim < 1 or len(means) == 0 or not bool(torch.isfinite(means).all()):
            raise UserError("A mixture needs the means of at least one component, (K, *event), all finite.")
        self.dtype = means.dtype if means.is_floating_point() else torch.get_default_dtype()
        self.event_shape = tuple(means.shape[1:])
        count, event = len(means), math.prod(self.event_shape)
        self.means = means.reshape(count, event).double()
        self.log_weights = normalised(weights, count).to(means.device)
        self.labels = checked_labels(labels, count, means.device)
        self.eigenvalues, self.basis = _spectrum(torch.as_tensor(covs, device=means.device), count, self.event_shape)
        self.degenerate = bool((self.eigenvalues == 0).any())

    def denoiser(self, process: Process) -> TensorDenoiser:
        """Under the Gaussian process. Raises `UserError` for another one, or one with a projection."""
        if not isinstance(process, Gaussian) or process.project is not None:
            raise UserError("Mixtures of Gaussians have denoisers under process.Gaussian without a projection only.")
        return TensorDenoiser(self, process)

    def _parts(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """(part of the components, z, c, eigenvalues), the middle two (B, K', D), in pieces of bounded size."""
        count, event = self.means.shape
        size = max(1, BLOCK // max(1, len(x) * event))
        spread = self.eigenvalues.expand(count, event)
        # a direction without variance at sigma = 0: as narrow as float64 can tell
        tiny = 1e-24 * max(1.0, float(self.means.square().max())) if self.degenerate else 0.0
        for i in range(0, count, size):
            part = slice(i, i + size)
            z = self._rotate(x[:, None] - alpha[:, None, None] * self.means[part], part)
            c = (alpha**2)[:, None, None] * spread[part] + (sigma**2)[:, None, None]
            yield part, z, c.clamp_min(tiny), spread[part]

    def _basis(self, part: slice) -> Tensor:
        return self.basis if len(self.basis) == 1 else self.basis[part]

    def _rotate(self, v: Tensor, part: slice) -> Tensor:
        """Into the eigenbases: U^T v, (B, K', D)."""
        return v if self.basis is None else torch.einsum("bkd,kde->bke", v, self._basis(part))

    def _gather(self, v: Tensor, part: slice) -> Tensor:
        """sum_k U v, (B, D), for v (B, K', D) in the eigenbases."""
        if self.basis is None:
            return v.sum(1)
        if len(self.basis) == 1:
            return v.sum(1) @ self.basis[0].mT
        return torch.einsum("bke,kde->bd", v, self._basis(part))

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor, wanted: Tensor | None) -> Tensor:
        """log of pi_k N_k(x), (B, K)."""
        pieces = [-(z.square() / c + c.log()).sum(-1) / 2 for _, z, c, _ in self._parts(x, alpha, sigma)]
        joint = torch.cat(pieces, 1) + (self.log_weights - x.shape[1] / 2 * math.log(2 * math.pi))
        return joint if wanted is None else joint.masked_fill(~self.allowed(wanted), -torch.inf)

    def weights_at(self, x, alpha, sigma, wanted=None):
        return self._joint(x, alpha, sigma, wanted).softmax(1)

    def at(self, x, alpha, sigma, wanted=None):
        joint = self._joint(x, alpha, sigma, wanted)
        r = joint.softmax(1)
        mean, score = r @ self.means, torch.zeros_like(x)
        for part, z, c, spread in self._parts(x, alpha, sigma):
            pull = r[:, part, None] * z / c
            mean = mean + alpha[:, None] * self._gather(spread * pull, part)
            score = score - self._gather(pull, part)
        return Blurred(joint.logsumexp(1) - self.log_share(wanted), mean, score)

    def take(self, index, noise):
        spread = self.eigenvalues.expand(self.means.shape)[index]
        step = spread.sqrt() * noise.normal(spread)
        if self.basis is not None:
            one = len(self.basis) == 1
            step = step @ self.basis[0].mT if one else (self.basis[index] @ step.unsqueeze(-1)).squeeze(-1)
        return (self.means[index] + step).to(self.dtype).view(-1, *self.event_shape)

    def scales(self):
        mean = self.weights @ self.means
        inside = self.eigenvalues.expand(self.means.shape).mean(1)
        variance = self.weights @ (inside + (self.means - mean).square().mean(1))
        return mean, float(variance.sqrt()), float(self.eigenvalues.min().sqrt())

    def given(self, measurement, y: Tensor) -> Mixture:
        """The posterior under y = A x_0 + n, of the same type: each component by Kalman's formulas, reweighted.

        measurement: a `LinearGaussian`, or a linear one of `backdrift.inverse` with Gaussian noise.

        Raises `UserError` for any other, or one that does not fit the events.
        """
        measurement = linear_gaussian(measurement)
        if measurement.A.shape[1] != self.means.shape[1]:
            raise UserError(f"The measurement takes {measurement.A.shape[1]} numbers, not {self.means.shape[1]}.")
        A, noise = measurement.A, measurement.cov
        S = self._covariances()
        AS = A @ S
        factor = torch.linalg.cholesky(AS @ A.mT + noise)
        gain = torch.cholesky_solve(AS, factor).mT
        gap = measurement.gap(self.means, y)
        posterior = copy.copy(self)
        shared = len(S) == 1
        step = gap @ gain[0].mT if shared else (gain @ gap.unsqueeze(-1)).squeeze(-1)
        posterior.means = self.means + step
        joint = self.log_weights + gaussian_log_prob(gap, factor[0] if shared else factor)
        posterior.log_weights = joint.log_softmax(0)
        # Joseph's form of the covariance stays positive
        rest = torch.eye(A.shape[1], dtype=A.dtype, device=A.device) - gain @ A
        covs = rest @ S @ rest.mT + gain @ noise @ gain.mT
        posterior.eigenvalues, posterior.basis = _decomposed(covs, 1e-10)
        posterior.degenerate = bool((posterior.eigenvalues == 0).any())
        return posterior

    def _covariances(self) -> Tensor:
        """(K, D, D), or (1, D, D) where one is shared by all."""
        spread = self.eigenvalues.expand(len(self.eigenvalues), self.means.shape[1])
        if self.basis is None:
            return torch.diag_embed(spread)
        return (self.basis * spread[:, None]) @ self.basis.mT


def _spectrum(covs: Tensor, count: int, event_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """(eigenvalues (K or 1, D or 1), eigenvectors (K or 1, D, D) or None) of `Mixture`'s covs."""
    event = math.prod(event_shape)
    lead = tuple(covs.shape[:1])
    if covs.ndim == 0:
        values = covs.double().view(1, 1)
    elif lead in ((count,), (1,)) and covs.shape[1:] == ():
        values = covs.double().view(-1, 1)
    elif lead in ((count,), (1,)) and tuple(covs.shape[1:]) == event_shape:
        values = covs.double().reshape(len(covs), event)
    elif lead in ((count,), (1,)) and tuple(covs.shape[1:]) == (event, event):
        tolerance = event * torch.finfo(covs.dtype if covs.is_floating_point() else torch.float64).eps
        return _decomposed(covs.double(), tolerance)
    else:
        raise UserError(
            f"Covariances of shape {tuple(covs.shape)} do not fit {count} components of shape {event_shape}: give a "
            f"number, ({count},), {(count, *event_shape)} or {(count, event, event)}."
        )
    if not bool(torch.isfinite(values).all() and (values >= 0).all()):
        raise UserError("Variances must be finite and not negative.")
    return values, None


def _decomposed(covs: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of covariances (C, D, D); negative ones within rounding become 0."""
    size = covs.abs().amax((1, 2), keepdim=True)
    if not bool(torch.isfinite(covs).all() and ((covs - covs.mT).abs() <= 1e-5 * size).all()):
        raise UserError("Full covariances must be finite and symmetric.")
    values, basis = torch.linalg.eigh((covs + covs.mT) / 2)
    if bool((values < -10 * tolerance * size[:, 0]).any()):
        raise UserError(f"A covariance is not positive semi-definite: it has the eigenvalue {float(values.min()):.3g}.")
    rounding = covs.shape[-1] * torch.finfo(torch.float64).eps * size[:, 0]
    return torch.where(values <= rounding, 0.0, values), basis
