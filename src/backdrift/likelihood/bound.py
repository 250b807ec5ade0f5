"""The variational bound, term by term:

    log p(x_0) >= E log p(x_0 | x_first) - sum_steps E KL(q(x_s | x_t, x_0) | p(x_s | x_t)) - KL(q(x_1 | x_0) | p(x_1))
                  reconstruction           denoising                                          prior

Ho et al. 2020, arXiv:2006.11239, Eq. 5; Kingma et al. 2021, arXiv:2107.00630, Eq. 11 for the continuous limit. All
three are sums over elements. The prior term is exact, alpha_1^2 |x_0|^2 / (2 sigma_1^2); the other two are averages
over noise, each drawn with its opposite. For the exact denoiser the continuous bound is log p_first itself, up to what
the prior and the decoder's width miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.likelihood.decoder import Decoder, GaussianDecoder
from backdrift.likelihood.estimate import LogLikelihood, Pair, at_least, averaged, checked, pair
from backdrift.likelihood.ladder import Continuous, Ladder, Node
from backdrift.noise import Noise
from backdrift.objective.variance import step_kl
from backdrift.posterior import expand, flat
from backdrift.sample.default import data_scale


@dataclass(frozen=True)
class Bound(LogLikelihood):
    """The bound and its terms, in nats: bound = reconstruction - denoising.sum(1) - prior.

    reconstruction: (B,). prior: (B,). denoising: (B, nodes), one for each place of the ladder, from t = 1 on (their
    strata in order where times are drawn).
    """

    reconstruction: Tensor
    prior: Tensor
    denoising: Tensor


def bound(
    denoiser: Denoiser,
    x0: Tensor,
    ladder: Ladder | None = None,
    *,
    decoder: Decoder | None = None,
    draws: int = 2,
    cond: Mapping | None = None,
    noise: Noise | None = None,
) -> Bound:
    """A lower bound of log p(x_0); x0: (B, *event).

    ladder: by default the continuous limit. decoder: by default a density; its standard deviation is sigma / alpha at
    the ladder's end. draws: independent estimates, of which the standard error is made; each calls the denoiser twice
    at every place. noise: the samples' own draws.

    Raises `UserError` for data, conditions or a process that do not fit.
    """
    ladder, decoder, schedule = ladder or Continuous(), decoder or GaussianDecoder(), denoiser.process.schedule
    noise, first = checked(denoiser, x0, cond, noise, ladder.end(schedule))
    at_least(2, draws, "draws, for its standard error")
    decoder.check(x0)
    scale = data_scale(denoiser)
    alpha, sigma = schedule.alpha_sigma(1.0)
    prior = float(alpha / sigma) ** 2 * x0.double().square() / 2
    alpha, sigma = schedule.alpha_sigma(first)
    last = torch.full((len(x0),), first, dtype=torch.float64, device=x0.device)
    maps, reconstructions, costs = [], [], []
    with torch.no_grad():
        for draw in range(draws):
            own = noise.at("bound", draw)
            found = pair(denoiser, x0, own.at("decoder").normal(x0), last, scale, cond)
            reconstruction = decoder.expected(x0, found, float(sigma / alpha))
            total, terms = reconstruction - prior, []
            for j, node in enumerate(ladder.nodes(schedule, scale, own)):
                found = pair(denoiser, x0, own.at("step", j).normal(x0), node.t.to(x0.device), scale, cond)
                cost = _kl(node, found, ladder.fraction)
                total = total - cost
                terms.append(flat(cost).sum(1))
            maps.append(total)
            reconstructions.append(flat(reconstruction).sum(1))
            costs.append(torch.stack(terms, 1))
    return Bound(*averaged(maps), sum(reconstructions) / draws, flat(prior).sum(1), sum(costs) / draws)


def _kl(node: Node, found: Pair, fraction: float) -> Tensor:
    """A step's KL, element by element, times the node's weight; as in `ladder`."""
    width, shrink, weight = (expand(value, found.control) for value in (node.width, node.shrink, node.weight))

    if found.beliefs[0].fraction is None:
        return weight * step_kl(found.square, width, shrink, fraction)
    # a learned variance depends on eps itself, so times it the control would not average to zero
    sides = zip(found.errors, found.beliefs, strict=True)
    return weight * sum(step_kl(square, width, shrink, belief.fraction.double()) for square, belief in sides) / 2
