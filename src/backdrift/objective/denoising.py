"""The denoising objective: corrupt a sample, ask for it back, measure the distance.

    L = E_t E_{x_t}  weight(t) loss(posterior, x_0) / D

Its minimum over all functions is E[x_0 | x_t] whatever the weight; the weight decides what a network of finite size
cares about. For a `Network` it is `target.weight`, which makes the loss the plain mean square error of what the network
predicts (Ho et al. 2020, arXiv:2006.11239, Eq. 14, for the noise; here for every target).

`denoising` is that loss. `Denoising` is what a training minimises: the same with a choice of weight, and where wanted
learned uncertainty, learned variances and self-conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.denoiser import Denoiser, Network
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.objective.base import Losses, Objective, Samples
from backdrift.objective.uncertainty import LogLoss, Uncertainty
from backdrift.objective.variance import Hybrid
from backdrift.objective.weights import Simple, Weight
from backdrift.posterior import expand
from backdrift.process.base import State


def denoising(
    denoiser: Denoiser,
    x0: State,
    t: Tensor,
    noise: Noise,
    cond: Mapping | None = None,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One loss per sample, (B,), divided by the number of elements of a sample.

    x0: (B, *event), or a dict of fields. t: (B,). weight: maps t to (B,); None takes the target's own.

    Raises `UserError` where no weight is given and the denoiser is not a `Network`.
    """
    process = denoiser.process
    if weight is None:
        if not isinstance(denoiser, Network):
            raise UserError(f"A {type(denoiser).__name__} has no target, so the loss needs a weight for its times.")
        weight = partial(Simple(), process.schedule, denoiser.target)
    xt = process.corrupt(x0, t, noise)
    return _weighted(weight(t), process.loss(denoiser(xt, t, cond), x0, xt, t), x0)


@kind("objective.Denoising")
@dataclass(frozen=True)
class Denoising(Objective):
    """The denoising loss.

    weight: on the distance in x_0. uncertainty: divides by the expected loss at each noise level, learned. variance:
    learns reverse variances too.
    self_conditioning: the share of the samples for which the network is shown its own first answer, 0 for a network
        that is never shown one; the others are shown zeros.  Chen et al. 2022, arXiv:2208.04202, section 3.2, where it
        is a half.
    """

    weight: Weight = field(default_factory=Simple)
    uncertainty: Uncertainty | None = None
    variance: Hybrid | None = None
    self_conditioning: float = 0.0

    def __post_init__(self):
        if not 0 <= self.self_conditioning <= 1:
            raise UserError(f"self_conditioning is a share of the samples, from 0 to 1, not {self.self_conditioning}.")

    @property
    def learned_variance(self):
        return self.variance is not None

    @property
    def estimating(self):
        return self.self_conditioning > 0

    def head(self, network):
        if self.uncertainty is None:
            return super().head(network)
        return LogLoss(self.uncertainty.nodes, network.sigma_data)

    def losses(self, network, head, samples):
        process, x0, t = network.process, samples.x0, samples.t
        xt = process.corrupt(x0, t, samples.noise)
        cond = self._told(network, xt, samples) if self.estimating and network.training else samples.cond
        belief = network(xt, t, cond)
        weight = self.weight(process.schedule, network.target, t)
        if self.weight.over_time:
            weight = weight / samples.density
        total = _weighted(weight, process.loss(belief, x0, xt, t), x0)
        shown = total.detach()
        if self.uncertainty is not None:
            level = head(process.schedule, t)
            total = total / level.exp() + level
        if self.variance is not None:
            total = total + self.variance.cost(belief, x0, t, process.schedule, samples.density).to(total)
        return Losses(total, shown)

    def _told(self, network: Network, xt: Tensor, samples: Samples) -> Mapping[str, Tensor]:
        """The conditions with an estimate of x_0, which is the network's first answer for a keyed share of samples."""
        coin = samples.noise.at("estimate").uniform(torch.zeros(len(xt), dtype=torch.float64))
        chosen = (coin < self.self_conditioning).nonzero().flatten()
        estimate = torch.zeros_like(xt)
        if len(chosen):
            with torch.no_grad():
                cond = {name: value[chosen.to(value.device)] for name, value in samples.cond.items()}
                there = chosen.to(xt.device)
                estimate[there] = network.first_estimate(xt[there], samples.t[chosen], cond)
        return {**samples.cond, "estimate": estimate}


def drop_conditions(cond: Mapping, noise: Noise, rate: float, nulls: Mapping[str, int]) -> Mapping:
    """`cond` with the conditions of a keyed fraction `rate` of the samples replaced by their `nulls`, all at once.

    Where there are several, each is also replaced alone in the fraction `rate` of the others. So one network learns all
    beliefs that guidance needs.  Ho and Salimans 2022, arXiv:2207.12598, Algorithm 1.
    """
    if rate == 0 or not cond:
        return cond
    like = torch.zeros(len(noise.index), dtype=torch.float64)
    dropped = noise.uniform(like) < rate
    made = {}
    for name, value in cond.items():
        alone = noise.at(name).uniform(like) < rate if len(cond) > 1 else dropped
        made[name] = value.masked_fill(expand(dropped | alone, value).bool().to(value.device), nulls[name])
    return made


def _weighted(weight: Tensor, distance: Tensor, x0: State) -> Tensor:
    """Weight times distance per element of a sample, (B,)."""
    fields = x0.values() if isinstance(x0, Mapping) else [x0]
    return weight.to(distance) * distance / sum(field[0].numel() for field in fields)
