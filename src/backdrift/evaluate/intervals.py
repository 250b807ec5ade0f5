"""Confidence intervals, each for the kind of figure that it suits.

A share of successes gets Wilson's interval. A ratio of medians gets the bootstrap.

Distances between sets and nearest-neighbour figures get neither. Drawing with replacement puts copies of one
sample into the set and leaves 37 % of the samples out: this moves the Fréchet and the sliced Wasserstein distance
up, breaks the kernel distance's unbiasedness and shrinks neighbour balls, so that the bootstrap's whole
distribution sits beside the figure. The jackknife draws nothing twice. Leaving out one group of ten at a time costs
ten evaluations, and the bias that the smaller set brings is common to all ten and drops out of their spread.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GROUPS = 10
_T_9 = 2.2621571627409915  # 97.5 % point of Student's t with GROUPS - 1 degrees of freedom
_Z = 1.959963984540054  # 97.5 % point of the normal distribution


def jackknife(statistic: Callable[[Tensor], Tensor], n: int, seed: int = 0) -> Tensor:
    """Half-widths (K,) of the 95 % intervals of `statistic` over `n` samples.

    `statistic(kept)` takes the indices of the samples to use and returns K figures. The `n` samples are dealt at
    random into 10 groups, each left out once; the variance is 9/10 times the sum of the squared deviations of
    the ten results from their mean (delete-a-group jackknife, Shao and Tu 1995, section 2.3), and Student's t
    with 9 degrees of freedom gives the interval. It covers the drawing of the samples, not of what they are
    compared with.
    """
    groups = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) % GROUPS
    results = torch.stack([statistic((groups != g).nonzero()[:, 0]) for g in range(GROUPS)])
    variance = (GROUPS - 1) / GROUPS * (results - results.mean(0)).square().sum(0)
    return _T_9 * variance.sqrt()


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927): never leaves [0, 1] and is right near its ends."""
    share, z2 = successes / n, _Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_ratio_of_medians(a: Tensor, b: Tensor, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of median(a) / median(b), both sets (n,) and (m,) redrawn."""
    generator = torch.Generator().manual_seed(seed)

    def medians(x: Tensor) -> Tensor:
        redrawn = (x[torch.randint(len(x), (len(x),), generator=generator)] for _ in range(draws))
        return torch.stack([values.median() for values in redrawn])

    ratios = medians(a) / medians(b)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype))
    return float(low), float(high)
