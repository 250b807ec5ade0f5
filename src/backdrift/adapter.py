"""An adapter on its base: what `backdrift train --task adapter` has learned, at any strength, in a model of its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from backdrift.errors import UserError
from backdrift.model import Model
from backdrift.run import Run, load_network
from backdrift.train.onto import AdaptedChoice


def adapt(base: Model, run: str | os.PathLike, strength: float = 1.0) -> Model:
    """`base` with the adapter of `run` in its weights; base stays as it is.

    base: the model of the run folder that the adapter was trained on, wherever that is now. strength: 0 is the base, 1
    what was trained, more exaggerates it.

    Raises `UserError` for a run that is no adapter, or one of another base.
    """
    choice = Run(Path(run)).options().net
    if not isinstance(choice, AdaptedChoice):
        raise UserError(f"{run} is no adapter; make one with backdrift train --task adapter --from BASE.")
    if base.folder is None:
        raise UserError("An adapter goes onto a model that was loaded from its run folder.")
    device = next(base.denoiser.parameters()).device
    network = load_network(run, device, replace(choice, base=str(base.folder)))
    network.net.strength = strength
    # without a folder: what lies in the base's is not this model
    return Model(network.around(network.net.merged()), base.classes, None, base.decode, base.text)
