"""Which average of the weights is best: figures of a run by the width of its power average.

Every width is judged on the same held-out pictures with the same noise, and sampled from the same noise and labels, so
their differences are much smaller than the figures' own intervals and can be read as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from backdrift.data import Pictures
from backdrift.evaluate.distances import frechet
from backdrift.evaluate.features import PixelPCA, extract
from backdrift.model import Model
from backdrift.run import Run
from backdrift.train.networks import NetChoice
from backdrift.train.posthoc import average
from backdrift.train.precision import Precision
from backdrift.train.validation import validate

_COMPONENTS = 24


@dataclass(frozen=True)
class ByWidth:
    """Figures of the average of this `width`: `loss` on the held-out part, `distance` of samples, None without any.

    left_over: `train.posthoc.Recipe.left_over`.
    """

    width: float
    left_over: float
    loss: float
    distance: float | None


def by_width(
    run: Run,
    pictures: Pictures,
    widths: Sequence[float],
    *,
    n: int = 0,
    steps: int = 10,
    seed: int = 0,
    device: torch.device | str = "cpu",
    net: NetChoice | nn.Module | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[ByWidth]:
    """The figures of these averages of `run`, trained on `pictures`.

    n: samples per width for the Fréchet distance to the held-out part, in 24 components of the pixels; 0 for none.
    steps: calls of the network per sample. on_progress: called with (widths done, widths in all).

    Raises `UserError` as `train.posthoc.average` does.
    """
    train, held_out = pictures.split()
    options, precision = run.options(), Precision(run.config()["precision"])
    labels = None
    if n and train.labels is not None:
        labels = train.labels[torch.randint(len(train), (n,), generator=torch.Generator().manual_seed(seed))]
    pca = PixelPCA.fit(train.tensor(), min(_COMPONENTS, train.tensor([0]).numel(), len(train) - 1)) if n else None
    found = []
    for width in widths:
        network, recipe = average(run, width, net)
        loss, _ = validate(network.to(device), held_out, options, precision, torch.device(device))
        distance = None
        if pca is not None:
            samples = Model(network, pictures.classes).sample(n, label=labels, steps=steps, seed=seed)
            distance = frechet(extract(pca, samples.cpu().clamp(-1, 1)), extract(pca, held_out.tensor()))
        found.append(ByWidth(width, recipe.left_over, loss, distance))
        if on_progress:
            on_progress(len(found), len(widths))
    return found
