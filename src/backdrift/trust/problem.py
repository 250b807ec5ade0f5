"""The problem that a lens looks at: a prior that is known exactly, a measurement, and the exact posterior.

A draw is looked at in ways that a sampler's errors show up in:

    its mode          the component or atom of the prior that it belongs to, in groups
    its fit           log p(y | x), and whether the noise can explain the misfit at all (1 %)
    its place         whether it lies on the prior at all
    its lines         projections on directions in which prior and posterior vary
    its seen part     the projection on the row space of a linear measurement, and the rest

A posterior of a single atom is refused: every sampler that finds the atom would pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.evaluate.memorisation import nearest
from backdrift.exact import Atoms, Distribution
from backdrift.exact.denoiser import ExactDenoiser
from backdrift.inverse.measurement import LinearMeasurement, Measurement
from backdrift.inverse.noise import GaussianNoise
from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.process import Gaussian

LEAST_ATOMS = 2.0  # effective atoms below which a posterior is vacuous
ENOUGH_ATOMS = 5.0  # effective atoms that the advised noise level leaves
NAMED = 8  # modes with a name of their own, where parts are many
LINES = 32
DENSE = 2048  # the largest matrix that is decomposed for the row space
ROWS = 256  # draws per call that compare each with all components


@dataclass(frozen=True, eq=False)
class Draws:
    """What is known of n draws. points: (n, D). modes: (n,). fit: log p(y | x) (n,). contradicts: (n,), whether the
    noise cannot explain the misfit. off: (n,), whether it lies off the prior. lines: (n, P)."""

    points: Tensor
    modes: Tensor
    fit: Tensor
    contradicts: Tensor
    off: Tensor
    lines: Tensor

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def ordered(self) -> Tensor:
        """The lines, each sorted, (P, n): what Wasserstein distances are taken to."""
        return self.lines.mT.contiguous().sort(1).values


@dataclass(frozen=True, eq=False)
class Problem:
    """prior: exact. measurement, y: what was measured, y (*shape). process: the Gaussian corruption.

    modes: the number of the mode (0 up) that each component or atom belongs to, (K,); by default the prior's labels,
    or every component, or the heaviest atoms of the posterior and the rest in two groups.

    Raises `UserError` where the parts do not fit each other, there is no exact posterior, or it is one atom.
    """

    prior: Distribution
    measurement: Measurement
    y: Tensor
    process: Gaussian
    modes: Tensor | None = None

    def __post_init__(self):
        if isinstance(self.prior, Atoms) and not self.prior.continuous:
            raise UserError("The lens is for floating-point atoms, and these are tokens or fields.")
        self.measurement.check_events(self.prior.event_shape)
        if tuple(self.y.shape) != self.measurement.shape:
            raise UserError(f"The lens takes one y of shape {self.measurement.shape}, not {tuple(self.y.shape)}.")
        self.measurement.batched(self.y)
        _ = self.posterior
        if self.modes is not None and tuple(self.modes.shape) != tuple(self.prior.log_weights.shape):
            raise UserError(f"modes= takes one number per part, {len(self.prior.log_weights)} of them.")

    @cached_property
    def posterior(self) -> Distribution:
        """p(x_0 | y). Raises `UserError` for a single atom, with the noise that would leave more."""
        found = self.prior.given(self.measurement, self.y)
        if self.on_atoms and len(found.log_weights) > 1 and effective(found.log_weights) < LEAST_ATOMS:
            raise UserError(
                f"The exact posterior is {effective(found.log_weights):.2f} effective atoms, so that whatever finds it "
                f"passes: {self._advice()}"
            )
        return found

    def _advice(self) -> str:
        """The noise that would leave enough atoms."""
        prior = self.prior.log_weights
        wanted = min(ENOUGH_ATOMS, 0.9 * effective(prior))
        fit = self.measurement.log_likelihood(self.prior.points, self.y).double()
        low, high = 1.0, 1e6
        for _ in range(60):
            middle = math.sqrt(low * high)
            enough = effective((prior + fit / middle**2).log_softmax(0)) >= wanted
            low, high = (low, middle) if enough else (middle, high)
        noise = self.measurement.noise
        if isinstance(noise, GaussianNoise) and noise.std.ndim == 0:
            std = float(noise.std)
            return f"a noise of standard deviation {std * high:.3g} in place of {std:.3g} would leave {wanted:.0f}."
        return f"{high:.3g} times the noise would leave {wanted:.0f}."

    @property
    def on_atoms(self) -> bool:
        """Whether the prior is points without a bandwidth."""
        return isinstance(self.prior, Atoms) and self.prior.bandwidth == 0

    @cached_property
    def denoiser(self) -> ExactDenoiser:
        """The prior's."""
        return self.prior.denoiser(self.process)

    @cached_property
    def target(self) -> ExactDenoiser:
        """The posterior's."""
        return self.posterior.denoiser(self.process)

    @cached_property
    def groups(self) -> tuple[Tensor, tuple[str, ...]]:
        """(the mode of each part (K,), the modes' names)."""
        weights, K = self.posterior.weights, len(self.posterior.log_weights)
        given = self.modes if self.modes is not None else self.prior.labels
        if given is not None:
            return given.long(), tuple(f"mode {k}" for k in range(int(given.max()) + 1))
        if K <= 12:
            word = "atom" if isinstance(self.prior, Atoms) else "component"
            return torch.arange(K), tuple(f"{word} {k}" for k in range(K))
        order = weights.argsort(descending=True)
        groups = torch.empty(K, dtype=torch.long)
        groups[order] = torch.where(weights[order].cumsum(0) < 0.99, NAMED, NAMED + 1)
        groups[order[:NAMED]] = torch.arange(NAMED)
        names = [f"part {int(k)}" for k in order[:NAMED]]
        return groups, (*names, "other parts that y supports", "parts that y excludes")

    @cached_property
    def seen(self) -> Tensor | None:
        """A basis of the measurement's row space, (D, r) with 0 < r < D, or None: not linear, too large, or trivial."""
        size, m = math.prod(self.prior.event_shape), math.prod(self.measurement.shape)
        if not isinstance(self.measurement, LinearMeasurement) or min(size, m) > DENSE or size > 2 * DENSE:
            return None
        matrix = self.measurement.matrix()
        values, basis = torch.linalg.eigh(matrix @ matrix.mT if m < size else matrix.mT @ matrix)
        keep = values > 1e-10 * values.max()
        basis = matrix.mT @ (basis[:, keep] * values[keep].rsqrt()) if m < size else basis[:, keep]
        return basis if 0 < basis.shape[1] < size else None

    @cached_property
    def directions(self) -> Tensor:
        """(D, P) unit vectors between pairs of draws, from the posterior and the prior alike."""
        some = torch.cat([flat(law.draw(LINES, seed=-1 - i)) for i, law in enumerate((self.posterior, self.prior))])
        some = some.double()
        if some.shape[1] == 1:
            return torch.ones(1, 1, dtype=torch.float64)
        pairs = torch.cat([some[:LINES].diff(dim=0)[::2], (some[:LINES] - some[LINES:])[::2]])
        pairs = pairs[pairs.norm(dim=1) > 0]
        if len(pairs) == 0:
            pairs = torch.eye(some.shape[1], dtype=torch.float64)[:LINES]
        return (pairs / pairs.norm(dim=1, keepdim=True)).mT

    def look(self, x: Tensor) -> Draws:
        """What there is to see of draws x (n, *event)."""
        points = flat(x).double()
        misfit, threshold = self._misfit
        return Draws(
            points,
            self.groups[0][self._parts(x)],
            self.measurement.log_likelihood(x, self.y).double(),
            misfit(x) > threshold,
            self._off(x),
            points @ self.directions,
        )

    def _parts(self, x: Tensor) -> Tensor:
        """The component or atom that each draw is likeliest to come from, or is nearest to."""
        if isinstance(self.prior, Atoms):
            return nearest(x, self.prior.points)[1]
        rows = []
        for part in flat(x).double().split(ROWS):
            one = torch.ones(len(part), dtype=torch.float64)
            rows.append(self.prior.weights_at(part, one, 0 * one).argmax(1))
        return torch.cat(rows)

    @cached_property
    def _misfit(self):
        """(a misfit of draws, its 99 % point under the noise, or that of exact draws where many of these are worse)."""
        noise, m = self.measurement.noise, math.prod(self.measurement.shape)
        exact = self.posterior.draw(1000, seed=-3)
        if isinstance(noise, GaussianNoise):
            from scipy.stats import chi2

            def misfit(x: Tensor) -> Tensor:
                clean = self.measurement.forward(x).double()
                return flat((self.y - clean).square() / noise.variance(clean)).sum(1)

            threshold = float(chi2.ppf(0.99, m))
        else:

            def misfit(x: Tensor) -> Tensor:
                return -self.measurement.log_likelihood(x, self.y).double()

            clean = self.measurement.forward(exact)
            made = noise.draw(clean, Noise.of(-4, len(clean)))
            threshold = float((-noise.log_prob(clean, made)).double().quantile(0.99))
        found = misfit(exact)
        if float((found > threshold).double().mean()) > 0.1:
            # this y is unlikely under the whole prior: what the exact posterior itself reaches is the measure
            threshold = float(found.quantile(0.99))
        return misfit, threshold

    def _off(self, x: Tensor) -> Tensor:
        if self.on_atoms:
            return nearest(x, self.prior.points)[0] > self._reach
        return self.prior.log_prob(x) < self._least if not self.prior.degenerate else torch.zeros(len(x), dtype=bool)

    @cached_property
    def _reach(self) -> float:
        """Half the usual distance between neighbouring atoms: beyond it a draw is nobody's copy."""
        points = flat(self.prior.points)[:2000].double()
        gaps = torch.cdist(points, points).fill_diagonal_(torch.inf).amin(1)
        gaps = gaps[(gaps > 0) & torch.isfinite(gaps)]
        return 0.5 * float(gaps.median()) / math.sqrt(points.shape[1]) if len(gaps) else 0.0

    @cached_property
    def _least(self) -> float:
        """The density that all but one in 200 of the prior's draws exceed."""
        return float(self.prior.log_prob(self.prior.draw(4000, seed=-2)).double().quantile(0.005))


def effective(log_weights: Tensor) -> float:
    """The effective number of parts, 1 / sum w^2 for normalised weights."""
    return float(torch.exp(-torch.logsumexp(2 * log_weights, 0)))
