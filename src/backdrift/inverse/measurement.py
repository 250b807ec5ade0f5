"""Measurements y = A(x) + noise: what a posterior sampler knows about the problem that it solves.

A measurement of your own is a few lines: a subclass of `LinearMeasurement` (or `Measurement`, if A is not linear) that
states `event_shape`, `shape`, `noise` and `forward`. Everything else has a default: the adjoint and vector-Jacobian
products by automatic differentiation, the pseudo-inverse, the proximal step and the inverse of c A A^T + Gamma by
conjugate gradients. A subclass overrides what it has in closed form.

One y, (*shape), serves a whole batch; a batch of them, (B, *shape), serves one sample each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.exact.measurement import LinearGaussian
from backdrift.inverse.noise import GaussianNoise, NoiseModel
from backdrift.inverse.solve import conjugate_gradients
from backdrift.inverse.svd import SVD
from backdrift.noise import Noise
from backdrift.posterior import expand, flat

DENSE = 1 << 24  # elements of a matrix whose singular values are computed


class Measurement(ABC):
    """y ~ noise(A(x)).

    event_shape: of x. shape: of y. Both without the batch. noise: what the detector adds.
    """

    event_shape: tuple[int, ...]
    shape: tuple[int, ...]
    noise: NoiseModel

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x), (B, *shape); x: (B, *event)."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J(x)^T v, (B, *event), J being A's Jacobian at x; v: (B, *shape)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.forward(x), x, v)[0]

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x), (B,), normalised in y."""
        return self.noise.log_prob(self.forward(x), self.batched(y))

    def draw(self, x: Tensor, noise: Noise) -> Tensor:
        """A measurement of each x, (B, *shape)."""
        return self.noise.draw(self.forward(x), noise)

    def batched(self, y: Tensor) -> Tensor:
        """y with a batch axis, (1, *shape) or (B, *shape). Raises `UserError` for other shapes and missing values."""
        if tuple(y.shape) == self.shape:
            y = y.unsqueeze(0)
        if tuple(y.shape[1:]) != self.shape:
            raise UserError(f"This measurement gives numbers of shape {self.shape}, but y is {tuple(y.shape)}.")
        if not bool(torch.isfinite(y).all()):
            raise UserError("y has infinite or missing values; mask them out of the measurement instead.")
        return y

    def check_events(self, event_shape: Sequence[int]) -> None:
        """Raises `UserError` unless events of this shape can be measured."""
        if tuple(event_shape) != self.event_shape:
            raise UserError(f"This measurement takes events {self.event_shape}, and the model's are {event_shape}.")


class LinearMeasurement(Measurement):
    """A linear A, with what posterior samplers ask of it."""

    def adjoint(self, v: Tensor) -> Tensor:
        """A^T v, (B, *event); v: (B, *shape)."""
        return Measurement.vjp(self, v.new_zeros(len(v), *self.event_shape), v)

    def vjp(self, x, v):
        return self.adjoint(v)

    def variance(self, like: Tensor) -> Tensor:
        """Gamma, the noise's variances, in like's shape. Raises `UserError` where the noise is not Gaussian."""
        if not isinstance(self.noise, GaussianNoise):
            raise UserError(f"This needs Gaussian noise, and the measurement has {type(self.noise).__name__}.")
        return self.noise.variance(like)

    def solve(self, right: Tensor, scale: Tensor) -> Tensor:
        """z with (scale A A^T + Gamma) z = right; right: (B, *shape), scale: (B,) >= 0."""
        variance, scale = self.variance(right), expand(scale, right)
        # divided by the noise, so that the system is well scaled where the noise differs over the detector
        std = variance.sqrt()

        def product(v: Tensor) -> Tensor:
            return scale * self.forward(self.adjoint(v / std)) / std + v

        return conjugate_gradients(product, right / std) / std

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the smallest x that comes nearest to y, (B, *event)."""
        return self.adjoint(conjugate_gradients(lambda v: self.forward(self.adjoint(v)), y))

    def prox(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """The posterior mean of a prior N(x, scale I): argmin |y - A z|^2_Gamma + |z - x|^2 / scale. scale: (B,)."""
        return x + expand(scale, x) * self.adjoint(self.solve(y - self.forward(x), scale))

    def seen(self, x: Tensor) -> Tensor:
        """The part of x that A sees, A^+ A x; the rest lies in its null space."""
        return self.pinv(self.forward(x))

    def matrix(self) -> Tensor:
        """A as a float64 matrix (m, D); for small problems."""
        size = math.prod(self.event_shape)
        basis = torch.eye(size, dtype=torch.float64).view(size, *self.event_shape)
        return flat(self.forward(basis)).mT.contiguous()

    def svd(self) -> SVD:
        """A's singular values and bases; by default of the dense matrix. Raises `UserError` where that is too large."""
        size, rows = math.prod(self.event_shape), math.prod(self.shape)
        if size * rows > DENSE:
            raise UserError(f"A matrix of {rows} x {size} numbers is too large for its singular values.")
        return dense_svd(*torch.linalg.svd(self.matrix(), full_matrices=False), self.event_shape)

    def linear_gaussian(self) -> LinearGaussian:
        """The same measurement as matrices, under which `exact` mixtures have a closed-form posterior."""
        variance = self.variance(torch.zeros(1, *self.shape, dtype=torch.float64))
        return LinearGaussian(self.matrix(), noise_std=variance.flatten().sqrt())


class Linear(LinearMeasurement):
    """y = A x with a dense matrix over flattened events.

    A: (m, D). noise_std: a number or (m,), or a `NoiseModel`. event_shape: of x, (D,) by default.

    Raises `UserError` for shapes that do not fit.
    """

    def __init__(self, A: Tensor, noise_std: float | Tensor | NoiseModel, event_shape: Sequence[int] | None = None):
        if A.ndim != 2:
            raise UserError(f"A measurement matrix has two axes (m, D), not the shape {tuple(A.shape)}.")
        self.A, self.shape = A, (A.shape[0],)
        self.event_shape = (A.shape[1],) if event_shape is None else tuple(event_shape)
        if math.prod(self.event_shape) != A.shape[1]:
            raise UserError(f"The matrix takes {A.shape[1]} numbers, and events {self.event_shape} have others.")
        self.noise = noise_model(noise_std)
        # A = U S V^T once: every system with A A^T is then diagonal
        self._U, self._S, self._Vt = torch.linalg.svd(A.double(), full_matrices=False)
        self._uniform = isinstance(self.noise, GaussianNoise) and self.noise.std.ndim == 0

    def forward(self, x):
        return flat(x) @ self.A.to(x).mT

    def adjoint(self, v):
        return (v @ self.A.to(v)).view(len(v), *self.event_shape)

    def solve(self, right, scale):
        if not self._uniform:
            return super().solve(right, scale)
        U, variance = self._U.to(right), self.variance(right)[:, :1]
        share = expand(scale, right) * self._S.to(right) ** 2
        inside = right @ U
        solution = (inside / (share + variance)) @ U.mT
        if U.shape[0] > U.shape[1]:
            # the part outside A's range meets the noise alone
            solution = solution + (right - inside @ U.mT) / variance
        return solution

    def svd(self):
        return dense_svd(self._U, self._S, self._Vt, self.event_shape)

    def pinv(self, y):
        keep = len(self._S) * torch.finfo(torch.float64).eps * self._S.max() < self._S
        inverse = torch.where(keep, 1 / self._S.where(keep, torch.ones_like(self._S)), 0.0).to(y)
        U = self._U.to(y)
        return self.adjoint((y @ U * inverse**2) @ U.mT)


def compressed(event_shape: Sequence[int], rows: int, noise: float | NoiseModel, seed: int = 0) -> Linear:
    """Compressed sensing: `rows` random sums over the whole event, with Gaussian weights of variance 1 / rows.

    Raises `UserError` for no rows.
    """
    if rows < 1:
        raise UserError(f"Compressed sensing needs at least one row, not {rows}.")
    weights = Noise.of(seed, rows).at("compressed").normal(torch.empty(rows, math.prod(event_shape)))
    return Linear(weights.double() / math.sqrt(rows), noise, event_shape)


class Function(Measurement):
    """y = fn(x) for any function on batches, (B, *event) to (B, *shape); differentiable, if a sampler needs that.

    noise: a standard deviation or a `NoiseModel`.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], event_shape: Sequence[int], noise: float | NoiseModel):
        self.forward_, self.event_shape, self.noise = fn, tuple(event_shape), noise_model(noise)
        self.shape = tuple(fn(torch.zeros(1, *self.event_shape)).shape[1:])

    def forward(self, x):
        return self.forward_(x)


class Composed(Measurement):
    """y = outer(inner(x)): what `outer` measures is what `inner` gives; the noise is `outer`'s."""

    def __init__(self, outer: Measurement, inner: Measurement):
        if outer.event_shape != inner.shape:
            raise UserError(f"The outer measurement takes {outer.event_shape}, and the inner one gives {inner.shape}.")
        self.outer, self.inner = outer, inner
        self.event_shape, self.shape, self.noise = inner.event_shape, outer.shape, outer.noise

    def forward(self, x):
        return self.outer.forward(self.inner.forward(x))

    def vjp(self, x, v):
        return self.inner.vjp(x, self.outer.vjp(self.inner.forward(x), v))


class ComposedLinear(Composed, LinearMeasurement):
    """Two linear measurements, one after the other."""

    def adjoint(self, v):
        return self.inner.adjoint(self.outer.adjoint(v))


class Stacked(Measurement):
    """Several measurements of the same x at once; y holds their numbers in a row, (m_1 + m_2 + ..,)."""

    def __init__(self, parts: Sequence[Measurement]):
        self.parts = tuple(parts)
        if not self.parts or len({part.event_shape for part in self.parts}) != 1:
            raise UserError("Stacked measurements must all take events of the same shape.")
        self.event_shape = self.parts[0].event_shape
        self.sizes = [math.prod(part.shape) for part in self.parts]
        self.shape, self.noise = (sum(self.sizes),), StackedNoise(self.parts)

    def forward(self, x):
        return torch.cat([flat(part.forward(x)) for part in self.parts], 1)

    def vjp(self, x, v):
        return sum(part.vjp(x, piece) for part, piece in self.split(v))

    def split(self, v: Tensor) -> list[tuple[Measurement, Tensor]]:
        """Each part with its own numbers of v (B, m)."""
        pieces = v.split(self.sizes, 1)
        return [(part, piece.reshape(len(v), *part.shape)) for part, piece in zip(self.parts, pieces, strict=True)]


class StackedLinear(Stacked, LinearMeasurement):
    """Several linear measurements at once."""

    def adjoint(self, v):
        return sum(part.adjoint(piece) for part, piece in self.split(v))

    def variance(self, like):
        return torch.cat([flat(part.variance(piece)) for part, piece in self.split(like)], 1)


class StackedNoise(NoiseModel):
    """Each part's own noise."""

    def __init__(self, parts: Sequence[Measurement]):
        self.parts, self.sizes = tuple(parts), [math.prod(part.shape) for part in parts]

    @property
    def smooth(self) -> bool:
        return all(part.noise.smooth for part in self.parts)

    def draw(self, clean, noise):
        pieces = clean.split(self.sizes, 1)
        draws = [
            flat(part.noise.draw(piece.reshape(len(clean), *part.shape), noise.at("part", n)))
            for n, (part, piece) in enumerate(zip(self.parts, pieces, strict=True))
        ]
        return torch.cat(draws, 1)

    def log_prob(self, clean, y):
        pieces = zip(self.parts, clean.split(self.sizes, 1), y.split(self.sizes, 1), strict=True)
        shaped = [(part, a.reshape(-1, *part.shape), b.reshape(-1, *part.shape)) for part, a, b in pieces]
        return sum(part.noise.log_prob(a, b) for part, a, b in shaped)


def compose(outer: Measurement, inner: Measurement) -> Measurement:
    """outer(inner(x)), linear where both are."""
    linear = isinstance(outer, LinearMeasurement) and isinstance(inner, LinearMeasurement)
    return ComposedLinear(outer, inner) if linear else Composed(outer, inner)


def stack(*parts: Measurement) -> Measurement:
    """Several measurements of the same x, linear where all are."""
    return StackedLinear(parts) if all(isinstance(part, LinearMeasurement) for part in parts) else Stacked(parts)


def dense_svd(U: Tensor, S: Tensor, Vt: Tensor, event_shape: Sequence[int]) -> SVD:
    """Matrices (m, k), (k,), (k, D) as maps, without the singular values that are zero but for rounding."""
    keep = 1e-7 * S.max() < S
    U, S, Vt = U[:, keep], S[keep], Vt[keep]
    return SVD(
        S,
        right=lambda x: flat(x) @ Vt.to(x).mT,
        back=lambda c: (c @ Vt.to(c)).view(len(c), *event_shape),
        left=lambda y: flat(y) @ U.to(y),
    )


def noise_model(noise: float | Tensor | NoiseModel) -> NoiseModel:
    """A standard deviation as `GaussianNoise`; a model as it is."""
    return noise if isinstance(noise, NoiseModel) else GaussianNoise(noise)
