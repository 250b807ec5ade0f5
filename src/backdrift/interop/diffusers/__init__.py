"""diffusers' models in, ours out.

    den = bd.interop.diffusers.load("folder")          # a pipeline's folder, or a network's own with scheduler=
    x = bd.sample(den, shape=(16, *den.event_shape), steps=10)

`load` returns a `Denoiser`, so every solver, guidance rule, tuning and audit takes it. It is the network as it was
trained: what diffusers' samplers do besides (clipping, thresholding, spacing) is left to the solver and the grid.
Between the entries of a table of betas the network is told the fraction; one with a learned embedding of whole entries
is told the nearest.

`export` is the way back: a module with diffusers' call signature that says, at each of a scheduler's time steps, what
a network trained for that scheduler would have predicted. Weights are read from safetensors only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from backdrift.errors import UserError
from backdrift.interop.diffusers.autoencoder import Autoencoder
from backdrift.interop.diffusers.folder import Parts, is_folder, pretrained, read_json
from backdrift.interop.diffusers.networks import FAMILIES
from backdrift.interop.diffusers.out import Exported, export
from backdrift.interop.diffusers.schedulers import read
from backdrift.interop.foreign import Foreign
from backdrift.interop.hub import local

__all__ = ["Autoencoder", "Exported", "Parts", "export", "is_folder", "load", "load_autoencoder", "read"]


def load(
    folder: str | os.PathLike,
    *,
    scheduler: Mapping | str | os.PathLike | None = None,
    none: int | Tensor | None = None,
    size: int | Sequence[int] | None = None,
    sigma_data: float | None = None,
) -> Foreign:
    """The network of a diffusers folder (or of a hub id, owner/name) as a denoiser, in evaluation mode.

    folder: a pipeline's, with model_index.json, or that of a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel
    alone. scheduler: a scheduler's config or its folder, where the folder has none or another one is meant. none: what
    stands for "no condition", which guidance needs: a label for UNet2DModel, tokens (M, width) for
    UNet2DConditionModel; a DiT has a label of its own for it. size: of the (latent) picture, where the config
    leaves it open. sigma_data: standard deviation of the data; by default EDM's, 1 for latents, 0.5 for pictures.

    Conditions are {"label": LongTensor (B,)}, or {"tokens": (B, M, width), "tokens_mask": (B, M)}.

    Raises `UserError` where diffusers is missing, and for a folder that is incomplete, damaged, of another family or of
    another shape than its config says.
    """
    parts = Parts.find(folder, scheduler)
    convention = read(parts.scheduler)
    config, channels = parts.config, parts.config.get("in_channels", 0)
    shape = (channels, *_sides(size if size is not None else config.get("sample_size"), parts.network))
    if config.get("out_channels", channels) not in (channels, 2 * channels, None):
        raise UserError(
            f"{parts.network} maps {channels} channels to {config['out_channels']}: a denoiser returns as many, or "
            "twice as many with a learned variance."
        )
    if sigma_data is None:
        sigma_data = parts.scheduler.get("sigma_data", 0.5 if parts.autoencoder is None else 1.0)
    net = pretrained(parts.network, parts.family)
    adapted = FAMILIES[parts.family](net, config, none)
    return Foreign(adapted, convention, shape, sigma_data).eval().requires_grad_(False)


def load_autoencoder(folder: str | os.PathLike) -> Autoencoder:
    """The AutoencoderKL of a pipeline's folder or hub id, or of a folder of its own, in evaluation mode.

    Raises `UserError` where there is none, or diffusers is missing.
    """
    path = local(folder)
    found = next((p for p in (path / "vae", path) if (p / "config.json").is_file()), path)
    config = read_json(found / "config.json")
    if config.get("_class_name") != "AutoencoderKL":
        raise UserError(f"{found} holds a {config.get('_class_name')!r}, not an AutoencoderKL.")
    vae = pretrained(found, "AutoencoderKL").eval().requires_grad_(False)
    return Autoencoder(vae, config.get("scaling_factor", 0.18215), config.get("shift_factor") or 0.0)


def _sides(size: Any, folder: Path) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Sequence) and len(size) == 2:
        return tuple(int(side) for side in size)
    raise UserError(f"The config in {folder} does not say how large its pictures are; give size=.")
