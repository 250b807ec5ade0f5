"""Finite data: sum_n w_n delta(y_n), or with a bandwidth h the kernel density sum_n w_n N(y_n, h^2 I).

Bayes' rule over the atoms is exact under every process: p(n | x_t) is proportional to w_n q(x_t | y_n). For tensors
under the Gaussian process it is a softmax over squared distances with v = alpha^2 h^2 + sigma^2, computed by
`exact.streaming`:

    E[x_0 | x] = (1 - alpha g) sum_n r_n y_n + g x,   g = alpha h^2 / v,      score = (alpha sum_n r_n y_n - x) / v.

How accurate the stream is, at which noise level, is measured by bench/exact_atoms.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.exact.base import Blurred, Distribution, checked_labels, normalised
from backdrift.exact.denoiser import EnumeratedDenoiser, ExactDenoiser, TensorDenoiser
from backdrift.exact.measurement import ROWS
from backdrift.exact.mixture import Mixture
from backdrift.exact.streaming import Cloud, Posterior
from backdrift.process import Gaussian, Process
from backdrift.process.base import State

TINY = 1e-24  # of the data's squared norm: the variance that stands for 0, where only equally near atoms share


class Atoms(Distribution):
    """The law that gives the weight w_n to the point y_n.

    points: (N, *event), floating point or tokens (long), or a dict of such fields for a product. weights: (N,),
    non-negative, scaled to sum to 1; equal where None. bandwidth: the standard deviation h of the kernel around each
    point, for floating points only. labels: (N,) class numbers, or None. Answers have the points' dtype.

    Raises `UserError` for bad shapes, weights, or values.
    """

    def __init__(
        self, points: State, weights: Tensor | None = None, bandwidth: float = 0.0, labels: Tensor | None = None
    ):
        fields = dict(points) if isinstance(points, Mapping) else {"points": points}
        sizes = {len(p) for p in fields.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise UserError("Atoms need at least one point, and the same number of points in every field.")
        (count,) = sizes
        for name, p in fields.items():
            if not (p.is_floating_point() or p.dtype == torch.long):
                raise UserError(f"Atoms are floating-point tensors or long tokens, but {name} has {p.dtype}.")
            if p.is_floating_point() and not bool(torch.isfinite(p).all()):
                raise UserError(f"Atoms must be finite, but {name} has infinite or missing values.")
        first = next(iter(fields.values()))
        self.continuous = not isinstance(points, Mapping) and first.is_floating_point()
        if not (math.isfinite(bandwidth) and bandwidth >= 0) or (bandwidth > 0 and not self.continuous):
            raise UserError("A bandwidth is a standard deviation, at least 0, and for floating-point points only.")
        self.points, self.bandwidth = (fields if isinstance(points, Mapping) else first), float(bandwidth)
        self.dtype = first.dtype if self.continuous else torch.get_default_dtype()
        shapes = {name: tuple(p.shape[1:]) for name, p in fields.items()}
        self.event_shape = shapes if isinstance(points, Mapping) else shapes["points"]
        self.event_size = sum(math.prod(shape) for shape in shapes.values())
        weights = torch.ones(count) if weights is None else weights
        self.log_weights = normalised(weights, count).to(first.device)
        self.labels = checked_labels(labels, count, first.device)
        self.degenerate = self.bandwidth == 0
        if self.continuous:
            self._cloud = Cloud.of(first.reshape(count, -1), self.log_weights, self.labels, self.classes)
            self._least = TINY * max(float(self._cloud.half_norms.double().mean()), 1e-12)

    def denoiser(self, process: Process) -> ExactDenoiser:
        """Under any process that fits the points: `process.Gaussian` for one floating-point tensor.

        Raises `UserError` where they do not fit.
        """
        if self.continuous != isinstance(process, Gaussian):
            kind = "one floating-point tensor" if self.continuous else "tokens or fields"
            raise UserError(f"These atoms are {kind}, which {type(process).__name__} does not corrupt.")
        if not self.continuous:
            return EnumeratedDenoiser(self, process)
        if process.project is not None and (
            self.bandwidth > 0 or not torch.allclose(process.project(self.points), self.points, atol=1e-5)
        ):
            raise UserError("Under a projected process the atoms must lie in its range and have no bandwidth.")
        return TensorDenoiser(self, process)

    def _variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha**2 * self.bandwidth**2 + sigma**2).clamp_min(self._least)

    def at(self, x, alpha, sigma, wanted=None):
        alpha, v = alpha[:, None], self._variance(alpha, sigma)[:, None]
        log_total, centre = Posterior.apply(x, self._cloud, alpha, v, wanted)
        log_prob = log_total - x.shape[1] / 2 * torch.log(2 * math.pi * v.squeeze(1)) - self.log_share(wanted)
        share = alpha * self.bandwidth**2 / v
        return Blurred(log_prob, (1 - alpha * share) * centre + share * x, (alpha * centre - x) / v)

    def weights_at(self, x, alpha, sigma, wanted=None):
        """By differences in float64 throughout: B N D operations, slower than the denoiser itself."""
        rows = []
        for xi, a, v in zip(x, alpha, self._variance(alpha, sigma), strict=True):
            gaps = [(xi - a * block.double()).square().sum(1) for block in self._cloud.points.split(4096)]
            rows.append(self.log_weights - torch.cat(gaps) / (2 * v))
        joint = torch.stack(rows)
        return (joint if wanted is None else joint.masked_fill(~self.allowed(wanted), -torch.inf)).softmax(1)

    def log_prob(self, x, cond=None):
        """log p(x_0 = x), (B,): a density with a bandwidth; for tokens the probability.

        Raises `UserError` for floating-point atoms without a bandwidth, and for fields.
        """
        if self.continuous or isinstance(self.points, Mapping):
            return super().log_prob(x, cond)
        wanted = self.wanted(cond, len(x))
        prior = self.log_weights if wanted is None else self.log_weights.masked_fill(~self.allowed(wanted), -torch.inf)
        same = torch.stack([(row == self.points).flatten(1).all(1) for row in x])
        joint = (prior - prior.logsumexp(-1, keepdim=True)).masked_fill(~same, -torch.inf)
        return joint.logsumexp(1).to(self.dtype)

    def take(self, index, noise):
        if isinstance(self.points, Mapping):
            return {name: p[index] for name, p in self.points.items()}
        chosen = self.points[index]
        return chosen + self.bandwidth * noise.normal(chosen) if self.bandwidth else chosen

    def scales(self):
        blocks = zip(self._cloud.points.split(4096), self.weights.split(4096), strict=True)
        moments = [(w @ p.double(), w @ p.double().square().mean(1)) for p, w in blocks]
        mean, square = (sum(m) for m in zip(*moments, strict=True))
        variance = float(square - mean.square().mean()) + self.bandwidth**2
        return mean, math.sqrt(max(variance, 0.0)), self.bandwidth

    def given(self, measurement, y: Tensor) -> Distribution:
        """The posterior under a measurement y.

        Without a bandwidth: the same atoms reweighted, under any object with .log_likelihood(points, y) -> (N,).
        With one: a `Mixture`, under a linear measurement with Gaussian noise.

        Raises `UserError` for another measurement of atoms with a bandwidth, or a y that is impossible under every one.
        """
        if self.bandwidth > 0:
            return Mixture(self.weights, self.points, self.bandwidth**2, self.labels).given(measurement, y)
        parts = self.points.split(ROWS) if isinstance(self.points, Tensor) else [self.points]
        joint = self.log_weights + torch.cat([measurement.log_likelihood(p, y) for p in parts]).to(self.log_weights)
        if not bool(torch.isfinite(joint.logsumexp(0))):
            raise UserError("Every atom gives this measurement zero probability, or one that is not a number.")
        posterior = copy.copy(self)
        posterior.log_weights = joint.log_softmax(0)
        if self.continuous:
            posterior._cloud = replace(self._cloud, log_weights=posterior.log_weights)
        return posterior
