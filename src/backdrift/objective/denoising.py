"""The denoising objective: corrupt a sample, ask for it back, measure the distance.

    L = E_t E_{x_t}  weight(t) loss(posterior, x_0) / D

Its minimum over all functions is E[x_0 | x_t] whatever the weight; the weight decides what a network of finite size
cares about. For a `Network` it is `target.weight`, which makes the loss the plain mean square error of what the network
predicts (Ho et al. 2020, arXiv:2006.11239, Eq. 14, for the noise; here for every target).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser, Network
from backdrift.errors import UserError
from backdrift.noise import Noise
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
        weight = _target_weight(denoiser)
    xt = process.corrupt(x0, t, noise)
    distance = process.loss(denoiser(xt, t, cond), x0, xt, t)
    return weight(t).to(distance) * distance / _elements(x0)


def drop_labels(cond: Mapping, noise: Noise, rate: float, null: int) -> Mapping:
    """`cond` with the label of a keyed fraction `rate` of the samples replaced by `null`, the class "no label".

    So one network learns both beliefs that guidance needs.  Ho and Salimans 2022, arXiv:2207.12598, Algorithm 1.
    """
    if rate == 0 or "label" not in cond:
        return cond
    label = cond["label"]
    dropped = noise.uniform(torch.zeros(label.shape, dtype=torch.float64)) < rate
    return {**cond, "label": label.masked_fill(dropped.to(label.device), null)}


def _target_weight(network: Network) -> Callable[[Tensor], Tensor]:
    return lambda t: network.target.weight(network.process.schedule, t)


def _elements(x: State) -> int:
    fields = x.values() if isinstance(x, Mapping) else [x]
    return sum(field[0].numel() for field in fields)
