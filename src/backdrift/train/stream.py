"""The endless stream of training samples, each a pure function of the seed and its place in the stream.

Place p belongs to epoch p // N and takes that epoch's permutation of the N pictures; its mirroring, time, noise and
hidden label are keyed by p. So a run that stops anywhere continues with the very next sample, and how the stream is cut
into batches, or shared among processes, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from backdrift.data.pictures import Pictures
from backdrift.noise import Noise
from backdrift.objective.denoising import drop_labels
from backdrift.train.options import TrainOptions


@dataclass(frozen=True)
class Samples:
    """What one pass needs: pictures x0 (B, C, H, W), times t (B,) on the CPU, conditions and noise."""

    x0: Tensor
    t: Tensor
    cond: Mapping[str, Tensor]
    noise: Noise


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


def draw(pictures: Pictures, options: TrainOptions, positions: Tensor, device: torch.device) -> Samples:
    """The training samples at these places of the stream."""
    chosen = indices(positions, len(pictures), options.seed)
    noise = Noise(options.seed, positions).at("train")
    x0 = pictures.tensor(chosen)
    if options.flip:
        mirrored = noise.at("flip").uniform(torch.zeros(len(positions), dtype=torch.float64)) < 0.5
        x0[mirrored] = x0[mirrored].flip(-1)
    cond = drop_labels(pictures.cond(chosen), noise.at("label"), options.label_dropout, len(pictures.classes))
    return Samples(
        x0.to(device),
        options.times.times(noise.at("time"), options.schedule),
        {name: value.to(device) for name, value in cond.items()},
        noise.at("noise"),
    )


def held_out(pictures: Pictures, options: TrainOptions, positions: Tensor, device: torch.device) -> Samples:
    """The same draws for validation: always the same noise, no mirroring, every label shown."""
    chosen = positions % len(pictures)
    noise = Noise(options.seed, positions).at("validation")
    return Samples(
        pictures.tensor(chosen).to(device),
        options.times.times(noise.at("time"), options.schedule),
        {name: value.to(device) for name, value in pictures.cond(chosen).items()},
        noise.at("noise"),
    )
