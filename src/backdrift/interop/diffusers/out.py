"""Our denoisers in the place of diffusers' networks.

A scheduler of theirs asks its network, at a time step, for a prediction about a state of its own scale. The state is
brought to the same noise-to-signal ratio on our schedule, our denoiser gives E[x_0 | state], and from this follows
whatever was asked for: p = a x_0 + b eps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.interop.diffusers.folder import scheduler_config
from backdrift.interop.diffusers.schedulers import read
from backdrift.interop.foreign import mean_at
from backdrift.posterior import expand


class Output(NamedTuple):
    """What diffusers' networks return: `.sample`, or the first of a tuple."""

    sample: Tensor


class Exported(nn.Module):
    """A denoiser as a network of diffusers', for one scheduler; made by `export`."""

    def __init__(self, denoiser: Denoiser, scheduler: Mapping):
        super().__init__()
        if len(denoiser.event_shape) != 3:
            raise UserError(f"diffusers' pipelines make pictures (C, H, W), not {tuple(denoiser.event_shape)}.")
        self.denoiser, self.convention = denoiser, read(scheduler)
        channels, height, width = denoiser.event_shape
        size = height if height == width else (height, width)
        self.config = SimpleNamespace(sample_size=size, in_channels=channels, out_channels=channels)

    @property
    def _weight(self) -> Tensor:
        return next(iter(self.denoiser.parameters()), torch.zeros(()))

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return self._weight.dtype

    @property
    def device(self) -> torch.device:
        """That of the weights."""
        return self._weight.device

    def forward(
        self, sample: Tensor, timestep: float | Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Output:
        """What a network trained for the scheduler predicts. sample: (B, C, H, W); timestep: a number, () or (B,)."""
        theirs, target, clock = self.convention.schedule, self.convention.target, self.convention.clock
        timestep = torch.as_tensor(timestep, dtype=torch.float64).reshape(-1).cpu().expand(len(sample))
        time = clock.time(theirs, timestep).clamp(0, 1)
        (alpha, sigma), (a, b) = theirs.alpha_sigma(time), target.row(theirs, time)
        state = sample / expand(clock.scale(theirs, time), sample)
        cond = None if class_labels is None else {"label": class_labels}
        mean = mean_at(self.denoiser, state, alpha, sigma, cond)
        noise = (state - expand(alpha, state) * mean) / expand(sigma, state)
        return Output(expand(a, state) * mean + expand(b, state) * noise)


def export(denoiser: Denoiser, scheduler: Any) -> Exported:
    """The denoiser as a module that diffusers' schedulers and pipelines drive in the place of a UNet2DModel.

    denoiser: of pictures, on any Gaussian process. scheduler: a diffusers scheduler, its config, or its folder; the
    module predicts what this one asks for (noise, data, v or velocity) and reads its time steps.

    Raises `UserError` for a scheduler of an unknown family, or a denoiser of something else than pictures.
    """
    config = getattr(scheduler, "config", scheduler)
    if isinstance(config, (str, os.PathLike)):
        config = scheduler_config(Path(config), config)
    config = dict(config)
    config.setdefault("_class_name", type(scheduler).__name__)
    return Exported(denoiser, config)
