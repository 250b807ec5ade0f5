"""Ranks that should be uniform: of a truth among draws, or of draws under a known law.

If truth and draws come from one law, the share of draws below the truth, in any statistic, is uniform. So is a draw's
place in the known distribution function of a statistic. Two numbers say most about ranks that are not: their mean
(draws lie too low or too high) and their spread (ranks at the ends mean draws that are too narrow). What these miss
shows in the largest gap of the distribution function, Kolmogorov's.

Projections of a Gaussian mixture are Gaussian mixtures on a line, whose distribution functions are known: so samples of
any sampler without a measurement are tested exactly, in any dimension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.exact import Atoms, Distribution, Mixture
from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.trust.verdict import Effect, Finding, Verdict, decide, overall

BIAS = 0.07  # of the mean rank: a shift by a quarter of a standard deviation
SPREAD = 0.3  # of the ranks' variance over the uniform one: draws about 15 % too narrow or too wide
GAP = 0.2  # of the distribution function


@dataclass(frozen=True, eq=False)
class RankReport:
    """findings, and the ranks (n,) in [0, 1] of each statistic, by name."""

    findings: tuple[Finding, ...]
    ranks: Mapping[str, Tensor]

    @property
    def verdict(self) -> Verdict:
        """FAIL if one finding fails, PASS if all pass, else INCONCLUSIVE."""
        return overall(self.findings)

    def lines(self) -> list[str]:
        """The report as text."""
        return [str(self.verdict), *(finding.line() for finding in self.findings)]

    def to_dict(self) -> dict:
        """JSON-able."""
        return {"verdict": str(self.verdict), "findings": [finding.to_dict() for finding in self.findings]}


def rank(truth: Tensor, draws: Tensor, tie: Tensor) -> Tensor:
    """The place of truth (n,) among draws (n, L), uniform in (0, 1) if they have one law; tie: (n,) uniform numbers."""
    below = (draws < truth[:, None]).sum(1)
    equal = (draws == truth[:, None]).sum(1)
    return (below + tie * (equal + 1)) / (draws.shape[1] + 1)


def rank_effects(ranks: Mapping[str, Tensor]) -> tuple[Effect, Effect]:
    """The mean and the spread of ranks that should be uniform."""
    names, u = tuple(ranks), torch.stack(list(ranks.values())).double()
    n = u.shape[1]
    squares = 12 * (u - 0.5).square()
    errors = torch.full((len(names),), 1 / math.sqrt(12 * n)).double()
    # under uniform ranks the squares have the variance 4 / 5
    spread = squares.std(1).clamp_min(0.8**0.5) / math.sqrt(n)
    return (
        Effect("bias of ranks", names, u.mean(1) - 0.5, errors, BIAS),
        Effect("spread of ranks", names, squares.mean(1) - 1, spread, SPREAD),
    )


def gap(ranks: Mapping[str, Tensor], alpha: float, tests: int) -> Finding:
    """The largest gap between the ranks' distribution function and the uniform one, over all statistics."""
    from scipy.stats import kstest

    found = {name: kstest(u.double().numpy(), "uniform") for name, u in ranks.items()}
    name = max(found, key=lambda name: found[name].statistic)
    value, p = float(found[name].statistic), min(float(f.pvalue) for f in found.values())
    half = 1.358 / math.sqrt(len(ranks[name]))
    if p < alpha / tests:
        verdict, reason = Verdict.FAIL, f"{name} has ranks that are not uniform, p = {p:.1g}"
    elif value + half < GAP:
        verdict, reason = Verdict.PASS, f"within the limit ({name})"
    else:
        verdict, reason = Verdict.INCONCLUSIVE, f"the interval crosses the limit ({name}); more runs would tell"
    return Finding("shape of ranks", verdict, reason, value, max(0.0, value - half), value + half, 0.6 * half, GAP)


def judged(ranks: Mapping[str, Tensor], alpha: float, *more: Effect) -> tuple[Finding, ...]:
    """The findings on ranks, and on further effects, with one allowance for all."""
    from scipy.stats import norm

    effects = (*rank_effects(ranks), *more)
    tests = sum(len(effect.parts) for effect in effects) + len(ranks)
    critical = float(norm.ppf(1 - alpha / (2 * tests)))
    return (*(decide(effect, critical) for effect in effects), gap(ranks, alpha, tests))


def against(
    samples: Tensor, law: Distribution, *, blur: float = 0.0, lines: int = 16, seed: int = 0, alpha: float = 0.05
) -> RankReport:
    """Whether samples (n, *event) come from an exact law, by their places along random lines and in log-density.

    blur: standard deviation of noise that is added to the samples, and to the law. Atoms need some: their own samples
    lie on points.

    Raises `UserError` for atoms without blur or bandwidth, and samples of another shape.
    """
    if tuple(samples.shape[1:]) != tuple(law.event_shape):
        raise UserError(f"The law has events {law.event_shape}, and the samples are {tuple(samples.shape)}.")
    noise = Noise.of(seed, len(samples)).at("ranks")
    points, weights, variances = _parts(law, blur)
    x = flat(samples).double() + blur * noise.normal(flat(samples).double())
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(points.shape[1], min(lines, 1 + points.shape[1]), generator=generator).double()
    directions /= directions.norm(dim=0)
    ranks = {}
    for i, line in enumerate(directions.unbind(1)):
        places, std = points @ line, variances(line).clamp_min(0).sqrt()
        z = torch.cat([((part[:, None] - places) / std).mul(0.5**0.5) for part in (x @ line).split(1024)])
        ranks[f"line {i}"] = ((1 + torch.erf(z)) / 2) @ weights
    # the share of exact draws that are less probable
    exact = flat(law.draw(4 * len(samples), seed=seed + 1)).double()
    exact = exact + blur * Noise.of(seed + 1, len(exact)).at("ranks").normal(exact)
    log_p, log_q = (_log_density(law, z, blur) for z in (exact, x))
    ranks["log-density"] = torch.searchsorted(log_p.sort().values, log_q) / len(log_p)
    return RankReport(judged(ranks, alpha), ranks)


def _parts(law: Distribution, blur: float):
    """(centres (K, D), weights (K,), a map from a line (D,) to the parts' variances along it (K,))."""
    if isinstance(law, Atoms):
        variance = law.bandwidth**2 + blur**2
        if variance == 0:
            raise UserError("Samples of atoms lie on points: give blur=, a tenth of their standard deviation, say.")
        return flat(law.points).double(), law.weights, lambda line: torch.tensor(variance).double()
    if not isinstance(law, Mixture):
        raise UserError(f"The law along a line is known for mixtures and atoms, not for {type(law).__name__}.")
    spread = law.eigenvalues.expand(len(law.eigenvalues), law.means.shape[1])

    def variances(line: Tensor) -> Tensor:
        turned = line.expand(len(spread), -1) if law.basis is None else torch.einsum("d,kde->ke", line, law.basis)
        return (turned.square() * spread).sum(1) + blur**2

    return law.means, law.weights, variances


def _log_density(law: Distribution, x: Tensor, blur: float) -> Tensor:
    one = torch.ones(len(x), dtype=torch.float64)
    return law.at(x, one, blur * one).log_prob
