"""The endless stream of training samples, each a pure function of the seed and its place in the stream.

Place p belongs to epoch p // N and takes that epoch's permutation of the N pictures; its mirroring, time, noise and
hidden conditions are keyed by p. So a run that stops anywhere continues with the very next sample, and how the stream
is cut into batches, or shared among processes, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from backdrift.data.derived import derive
from backdrift.data.pictures import Pictures
from backdrift.noise import Noise
from backdrift.objective.base import Samples
from backdrift.objective.denoising import drop_conditions
from backdrift.train.options import TrainOptions


@lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation of 0..count - 1 in this epoch."""
    keys = Noise.of(seed, count).at("order", epoch).uniform(torch.zeros(count, dtype=torch.float64))
    return keys.argsort(stable=True)


def indices(positions: Tensor, count: int, seed: int) -> Tensor:
    """Which of `count` pictures stands at each place (B,) of the stream."""
    epochs, places = positions // count, positions % count
    found = torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        found[here] = order(count, seed, epoch)[places[here]]
    return found


def draw(
    pictures: Pictures,
    options: TrainOptions,
    positions: Tensor,
    device: torch.device,
    memory: Tensor | None = None,
) -> Samples:
    """The training samples at these places of the stream. memory: what the law of the times knows of the losses."""

    def shown(places: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = indices(places, len(pictures), options.seed)
        noise = Noise(options.seed, places).at("train")
        x0 = pictures.tensor(chosen)
        if options.flip:
            mirrored = noise.at("flip").uniform(torch.zeros(len(places), dtype=torch.float64)) < 0.5
            x0[mirrored] = x0[mirrored].flip(-1)
        cond = drop_conditions(pictures.cond(chosen), noise.at("label"), options.label_dropout, pictures.nulls)
        return x0, {**cond, **derive(options.derived, x0, noise.at("derived"), hide=True)}

    memory = options.times.memory() if memory is None else memory
    return _samples(options, "train", positions, shown, memory, device)


def held_out(pictures: Pictures, options: TrainOptions, positions: Tensor, device: torch.device) -> Samples:
    """The same draws for validation: always the same noise, no mirroring, every label shown."""

    def shown(places: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        x0, noise = pictures.tensor(places % len(pictures)), Noise(options.seed, places).at("validation")
        return x0, {**pictures.cond(places % len(pictures)), **derive(options.derived, x0, noise.at("derived"))}

    return _samples(options, "validation", positions, shown, options.times.memory(), device)


def _samples(
    options: TrainOptions, name: str, positions: Tensor, shown: Callable, memory: Tensor, device: torch.device
) -> Samples:
    """Samples of the stream `name`. shown: the pictures and conditions at places (N,)."""

    def noise(places: Tensor) -> Noise:
        return Noise(options.seed, places).at(name)

    def look(places: Tensor) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        x0, cond = shown(places)
        return x0, noise(places).at("noise").normal(x0), cond

    x0, cond = shown(positions)
    drawn = options.times.draw(noise(positions).at("time"), options.schedule, memory)
    partners = options.pairing.partners(positions, look)
    return Samples(
        x0.to(device),
        drawn.t,
        {name: value.to(device) for name, value in cond.items()},
        noise(partners).at("noise"),
        options.times.density(drawn.t, options.schedule),
        drawn.share,
        drawn.place,
        positions.double() / (options.steps * options.batch),
    )
