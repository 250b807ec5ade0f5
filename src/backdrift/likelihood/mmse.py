"""The log-density as an integral of squared errors, with no schedule, no flow and no derivative.

With x_g = x + eps / sqrt(g) and the exact denoiser D, the pointwise form of the I-MMSE relation is

    -E log p_g(x_g) = d/2 log(2 pi e / g) + 1/2 int_0^g E|x - D(x_h)|^2 dh,

and p_g tends to p, so the integral to a large g is -log p(x); its integrand belongs to the elements, which makes the
map. Guo et al. 2005, doi:10.1109/TIT.2005.844072; Kong et al. 2023, arXiv:2302.03792.

It equals log p only where D is the exact posterior mean of one law; for a trained network it is that network's
description length, not the density of its flow. Below the smallest g of the schedule (alpha(1) > 0) the state at t = 1
serves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.likelihood.estimate import LogLikelihood, at_least, averaged, checked, pair
from backdrift.likelihood.ladder import Continuous
from backdrift.noise import Noise
from backdrift.posterior import expand
from backdrift.sample.default import data_scale


def mmse(
    denoiser: Denoiser,
    x: Tensor,
    *,
    evaluations: int = 100,
    first: float | None = None,
    draws: int = 2,
    cond: Mapping | None = None,
    noise: Noise | None = None,
) -> LogLikelihood:
    """log p(x) by I-MMSE, for data x (B, *event) with noise of sigma / alpha at `first` (1e-3 by default).

    evaluations: strata of the noise level, uniform in log(1 + v g), v the data's variance. draws: independent
    estimates, of which the standard error is made; each calls the denoiser twice in every stratum.

    Raises `UserError` for data, conditions or a process that do not fit.
    """
    noise, first = checked(denoiser, x, cond, noise, first)
    at_least(2, draws, "draws, for its standard error")
    ladder, scale, schedule = Continuous(evaluations, first), data_scale(denoiser), denoiser.process.schedule
    alpha, sigma = (float(v) for v in schedule.alpha_sigma(first))
    entropy = (math.log(2 * math.pi * math.e) + 2 * math.log(sigma / alpha)) / 2
    maps = []
    with torch.no_grad():
        for draw in range(draws):
            own = noise.at("mmse", draw)
            total = torch.full_like(x, -entropy, dtype=torch.float64)
            for j, node in enumerate(ladder.above(0.0, schedule, scale, own)):
                square = pair(denoiser, x, own.at("step", j).normal(x), node.t.to(x.device), scale, cond).square
                total = total - expand(node.width, square) / 2 * square
            maps.append(total)
    return LogLikelihood(*averaged(maps))
