"""Noise-conditional score networks: the score at a ladder of noise levels, sampled by Langevin steps on the way down.

Song and Ermon 2019, arXiv:1907.05600; the advice on every constant is that of Song and Ermon 2020, arXiv:2006.09011.
In this library the whole path is made of general parts:

    the ladder     `schedule.VE`: levels at equal steps of time are geometric
    the network    the target `SCORE`: the network's output over sigma is the score           (Technique 3)
    the loss       the plain one of that target: score matching weighted by sigma^2
    the levels     `times.Uniform`: every level as often as any other, here without gaps between them
    the average    of the weights, as in every training                                       (Technique 5)
    the sampler    `solvers.AnnealedLangevin` on the grid `Uniform`

`noise_ladder` chooses the constants for a set of data:

    ladder = bd.objective.noise_ladder(pictures.tensor())
    law = {"schedule": ladder.schedule, "target": bd.target.SCORE(), "times": bd.objective.Uniform()}
    model = bd.train(pictures, bd.TrainOptions(**law))
    x = model.sample(16, solver=ladder.solver, steps=ladder.evaluations, grid=bd.grids.Uniform())

or, with the levels of CIFAR-10, `backdrift train --schedule ve --target score --times uniform` and
`backdrift sample RUN --solver annealedlangevin --grid uniform --steps 300`.

The advice on the step size is for data at one point. On data with a width of their own such steps end too wide, and
`AnnealedLangevin` as it is by default, which goes down to the next level by holding D, is nearer (docs/measured.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.posterior import flat
from backdrift.sample.langevin import AnnealedLangevin
from backdrift.schedule import VE

_BLOCK = 1024  # rows of the distance matrix at once


@dataclass(frozen=True)
class NoiseLadder:
    """The noise levels for a set of data and Langevin steps that fit them.

    schedule: sigma from the coarsest level to the finest. levels: how many, the coarsest first; the state after the
    last one is at the finest. solver: Langevin dynamics with a step size for these levels.
    """

    schedule: VE
    levels: int
    solver: AnnealedLangevin

    @property
    def evaluations(self) -> int:
        """Calls of the denoiser for a sample: what to ask for as `steps`."""
        return self.levels * self.solver.inner


def noise_ladder(x: Tensor, *, inner: int = 5, finest: float = 0.01) -> NoiseLadder:
    """The ladder for data like x (N, *event): Techniques 1, 2 and 4. Costs N^2 distances; take a part of a large set.

    inner: Langevin steps at each level, as many as there is time for. finest: the last level, a noise that nobody sees.

    Raises `UserError` for data that are no set of different points, or a finest level as large as they are.
    """
    if inner < 1:
        raise UserError(f"A ladder needs at least 1 Langevin step at each level, not {inner}.")
    coarsest = largest_distance(x)
    if not 0 < finest < coarsest:
        raise UserError(f"The finest level must lie between 0 and the data's largest distance {coarsest:g}.")
    levels = math.ceil(math.log(coarsest / finest) / math.log(level_ratio(flat(x).shape[1])))
    ratio = (coarsest / finest) ** (1 / levels)
    return NoiseLadder(
        VE(finest, coarsest), levels, AnnealedLangevin(langevin_size(ratio, inner), inner, published=True)
    )


def largest_distance(x: Tensor) -> float:
    """The largest Euclidean distance between two of x (N, *event): the coarsest level, from which Langevin steps can
    reach every sample.  Technique 1. Raises `UserError` for less than two samples."""
    if len(x) < 2:
        raise UserError(f"A distance needs at least two samples, not {len(x)}.")
    points = flat(x)
    return max(float(torch.cdist(block, points).max()) for block in points.split(_BLOCK))


def level_ratio(dimension: int) -> float:
    """The ratio of neighbouring levels at which half of one level's noise has seen training at the level above.

    The length of normal noise is about sigma sqrt(D), with a standard deviation of sigma / sqrt(2). The share of a
    level's lengths within three deviations of those of the level above is, at the ratio r,

        Phi(sqrt(2 D) (r - 1) + 3 r) - Phi(sqrt(2 D) (r - 1) - 3 r)  =  1 / 2.

    Technique 2. At most 10, which in up to 5 dimensions leaves a larger share.
    """
    if dimension < 1:
        raise UserError(f"A dimension is at least 1, not {dimension}.")
    low, high = 1.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(middle, dimension) > 0.5 else (low, middle)
    return high


def overlap(ratio: float, dimension: int) -> float:
    """The share that `level_ratio` makes a half."""
    shift = math.sqrt(2 * dimension) * (ratio - 1)
    return (math.erf((shift + 3 * ratio) / math.sqrt(2)) - math.erf((shift - 3 * ratio) / math.sqrt(2))) / 2


def level_variance(size: float | np.ndarray, ratio: float, inner: int) -> float | np.ndarray:
    """The variance, over the level's sigma^2, after `inner` Langevin steps from the level above; size as in
    `AnnealedLangevin`, for data at one point.  Proposition 2 there, Eq. 5.
    """
    keep, stationary = 1 - size / 2, 4 / (4 - size)
    return keep ** (2 * inner) * (ratio**2 - stationary) + stationary


def langevin_size(ratio: float, inner: int) -> float:
    """The size of `AnnealedLangevin`'s steps at which `level_variance` is nearest to 1, for x that stays as it is
    between levels (`published`).  Technique 4."""
    if not ratio > 1 or inner < 1:
        raise UserError(f"Langevin steps go down by a ratio above 1 in at least 1 step, not {ratio:g} in {inner}.")
    # smooth and above 1 everywhere, with one minimum: a fine grid finds it as well as anything
    sizes = np.geomspace(1e-8, 2.0, 20_001)
    return float(sizes[np.abs(level_variance(sizes, ratio, inner) - 1).argmin()])
