"""Calibration over many measurements: no exact posterior is needed, only truths from the prior that the sampler has.

Draw x* from the prior, measure it, y ~ p(y | x*), and draw from the posterior under test. Then x* is itself one exact
draw of p(x | y), so its rank among the draws is uniform in every statistic (simulation-based calibration, Talts et al.
2018, arXiv:1804.06788), the share of draws nearer than x* to any point chosen by y is uniform (TARP, Lemos et al. 2023,
arXiv:2302.03026), intervals cover as often as they say, and a draw's squared error is twice that of the mean.

A sampler that ignores y and returns the prior passes every test that does not look at y (Modrak et al. 2023,
arXiv:2211.02383): here the likelihood, and the point of TARP, do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.inverse.measurement import Measurement
from backdrift.inverse.sampler import Exact, PosteriorSampler
from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.trust.ranks import RankReport, judged, rank
from backdrift.trust.verdict import Effect

LEVELS = (0.5, 0.8, 0.95)
COVER = 0.06  # the error of a coverage that matters
RATIO = 0.2  # and of log (error of draws / twice the error of the mean)
LINES = 4
NUMBERS = 1 << 22  # in the draws of one call


@dataclass(frozen=True, eq=False)
class Calibration(RankReport):
    """What `calibrate` found: findings, ranks by statistic, and coverage: the share of truths inside the intervals of
    each level, (levels, *event)."""

    levels: tuple[float, ...]
    coverage: Tensor


@torch.no_grad()
def calibrate(
    sampler: Callable,
    denoiser: Denoiser,
    measurement: Measurement,
    truths: Tensor,
    *,
    draws: int = 50,
    steps: int = 100,
    seed: int = 0,
    alpha: float = 0.05,
) -> Calibration:
    """Test a posterior sampler on measurements of truths (runs, *event), which are draws of the denoiser's own prior.

    For an exact prior `prior.draw(200)`, for a network its own samples. With held-out pictures in their place it tests
    network and sampler together. draws: per measurement. alpha: at most this share of perfect samplers fails.

    Raises `UserError` for less than 50 truths or 10 draws, or where the parts do not fit each other.
    """
    runs = len(truths)
    if runs < 50 or draws < 10:
        raise UserError(f"Calibration needs at least 50 truths and 10 draws each (200 and 50 tell more), not {runs}.")
    measurement.check_events(tuple(truths.shape[1:]))
    noise = Noise.of(seed, runs)
    y = measurement.draw(truths, noise.at("measure"))
    x = posterior_draws(sampler, denoiser, measurement, y, draws, steps=steps, seed=seed)
    if not bool(torch.isfinite(x).all()):
        raise UserError("The sampler returned draws that are not numbers; diagnose shows on which rung.")
    point = _points(measurement, truths, y)
    # the statistics of truth and draws alike, (runs, 1 + draws) each
    everything = torch.cat([truths[:, None].to(x), x], 1)
    found = _statistics(measurement, everything, y, point, seed)
    tie = noise.at("tie").uniform(torch.empty(runs, len(found), dtype=torch.float64)).unbind(1)
    ranks = {
        name: rank(values[:, 0], values[:, 1:], u)
        for (name, values), u in zip(found.items(), tie, strict=True)
        if bool(values[:, 1:].std(1).gt(0).any()) or not bool((values[:, :1] == values[:, 1:]).all())
    }
    coverage = covered(x, truths)
    return Calibration(
        judged(ranks, alpha, coverage_effect(coverage), _mean_effect(x, truths)), ranks, LEVELS, coverage.mean(1)
    )


def posterior_draws(
    sampler: Callable, denoiser: Denoiser, measurement: Measurement, y: Tensor, draws: int, *, steps: int, seed: int = 0
) -> Tensor:
    """(runs, draws, *event) for y (runs, *shape), in calls of bounded size."""
    runs, shape = len(y), tuple(denoiser.event_shape)
    # ours take a measurement for each draw; of someone else's that is not known
    many = isinstance(sampler, PosteriorSampler) and not isinstance(sampler, Exact)
    size = max(1, NUMBERS // (draws * max(1, torch.Size(shape).numel()))) if many else 1
    parts = []
    for low in range(0, runs, size):
        some = y[low : low + size]
        index = torch.arange(low * draws, (low + len(some)) * draws)
        # a sampler may key its noise by the seed alone
        own = Noise(seed, index) if many else Noise(seed * 1_000_003 + low, torch.arange(draws))
        one = some.repeat_interleave(draws, 0) if many else some[0]
        x = sampler(denoiser, measurement, one, len(some) * draws, steps=steps, noise=own)
        parts.append(x.detach().reshape(len(some), draws, *shape))
    return torch.cat(parts)


def _points(measurement: Measurement, truths: Tensor, y: Tensor) -> Tensor:
    """A point for each y that depends on it and on no truth of its own: of the other truths, the one that fits best."""
    best = []
    for i in range(len(y)):
        others = torch.cat([truths[:i], truths[i + 1 :]])[:64]
        best.append(others[measurement.log_likelihood(others, y[i]).argmax()])
    return torch.stack(best)


def _statistics(measurement: Measurement, x: Tensor, y: Tensor, point: Tensor, seed: int) -> dict[str, Tensor]:
    """Statistics (runs, m) of x (runs, m, *event)."""
    runs, m = x.shape[:2]
    points = x.reshape(runs, m, -1).double()
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(points.shape[2], min(LINES, points.shape[2]), generator=generator).double()
    found = {f"line {i}": points @ line for i, line in enumerate(directions.unbind(1))}
    found["squared norm"] = points.square().sum(2)
    each = [measurement.log_likelihood(row, one) for row, one in zip(x, y, strict=True)]
    found["log p(y | x)"] = torch.stack(each).double()
    found["distance to a point chosen by y"] = (points - flat(point).double()[:, None]).norm(dim=2)
    return found


def covered(x: Tensor, truths: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """Whether central intervals of draws x (runs, draws, *event) hold the truths, (levels, runs, *event) of 0 and 1.

    An interval of level p is the draws' own from the rank (1 - p) / 2 to (1 + p) / 2; between ranks the share counts,
    so that an exact sampler covers p on the average at any number of draws.
    """
    L = x.shape[1]
    below = (x < truths[:, None]).sum(1).double()
    equal = (x == truths[:, None]).sum(1).double()
    shares = []
    for level in levels:
        low, high = (L + 1) * (1 - level) / 2, (L + 1) * (1 + level) / 2
        # the truth's rank is uniform on [below, below + equal + 1]
        inside = torch.minimum(below + equal + 1, torch.tensor(high)) - torch.maximum(below, torch.tensor(low))
        shares.append(inside.clamp_min(0) / (equal + 1))
    return torch.stack(shares)


def coverage_effect(coverage: Tensor) -> Effect:
    """Coverage (levels, runs, *event) less the level, pixels together; the error is over the runs."""
    each = coverage.flatten(2).mean(2) if coverage.ndim > 2 else coverage
    errors = each.std(1).clamp_min(1e-3) / each.shape[1] ** 0.5
    parts = tuple(f"{level:.0%} intervals" for level in LEVELS)
    return Effect("coverage of pixel intervals", parts, each.mean(1) - torch.tensor(LEVELS).double(), errors, COVER)


def _mean_effect(x: Tensor, truths: Tensor) -> Effect:
    """log of the draws' squared error over twice the mean's, 0 for exact draws."""
    L = x.shape[1]
    draw = (x - truths[:, None]).flatten(2).double().square().sum(2).mean(1)
    mean = (x.mean(1) - truths).flatten(1).double().square().sum(1) * (2 * L / (L + 1))
    ratio = (draw.mean() / mean.mean()).log()
    # by the delta method, draws and mean of one run together
    error = (draw / draw.mean() - mean / mean.mean()).std() / len(draw) ** 0.5
    return Effect("error of draws over the mean's", ("twice",), ratio[None], error[None], RATIO)
