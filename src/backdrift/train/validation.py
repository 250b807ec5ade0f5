"""The loss on the validation part: always the same pictures, times and noise, so that two figures can be compared."""

from __future__ import annotations

import torch

from backdrift.data.pictures import Pictures
from backdrift.denoiser import Network
from backdrift.train import metrics, stream
from backdrift.train.distributed import ALONE, World
from backdrift.train.options import TrainOptions
from backdrift.train.precision import Precision, arithmetic

VALIDATED = 512  # losses per measurement: enough for 8 bins, little beside the training between two


@torch.no_grad()
def validate(
    network: Network,
    held_out: Pictures,
    options: TrainOptions,
    precision: Precision,
    device: torch.device,
    world: World = ALONE,
) -> tuple[float | None, list[float | None]]:
    """The network's loss, in all and by noise level (`metrics.means`)."""
    window, head = metrics.new_window(device), options.objective.head(network).to(device)
    passes = -(
        -VALIDATED * options.parts // options.batch
    )  # as many in every process: a sharded network needs all for each
    for positions in world.part(torch.arange(VALIDATED)).tensor_split(passes):
        samples = stream.held_out(held_out, options, positions, device)
        with arithmetic(precision, device):
            loss = options.objective.losses(network, head, samples).shown
        metrics.add(window, loss, samples.t, options.schedule, network.sigma_data)
    return metrics.means(world.sum(window))
