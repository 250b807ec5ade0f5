"""`backdrift train --task prior`: a denoiser of representations, which says what pictures are to show."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from backdrift.cli.tasks import Task
from backdrift.errors import UserError

STEPS = 4000  # of a network that is a thousand times cheaper than one of pictures


@dataclass(frozen=True)
class Prior(Task):
    """A denoiser of the representations of the pictures, without conditions but their labels (RCG's first stage)."""

    of: Path | None = None
    """The run of the encoder, or of the model that is told its representations."""
    width: int = 256
    """Of the network."""
    blocks: int = 4
    """Two layers each."""

    def pictures(self, typed, pictures):
        from backdrift.represent import Encoder, Vectors, informed, unit
        from backdrift.run import load_network
        from backdrift.train.checkpoint import checksum

        if self.of is None:
            raise UserError("--task prior needs an encoder: add --prior.of RUN, an encoder's or a represented model's.")
        if typed.flip:
            raise UserError("Representations cannot be mirrored; leave out --flip.")
        network = load_network(self.of)
        net = network.net if isinstance(network, Encoder) else informed(network).encoder
        if tuple(net.config["shape"]) != pictures.shape:
            raise UserError(f"The encoder in {self.of} is for pictures of {net.config['shape']}, not {pictures.shape}.")
        return Vectors.of(pictures, lambda x: unit(net.features(x)), str(checksum(net.state_dict())))

    def choices(self, typed, pictures, made):
        from backdrift.represent import MLPChoice

        shapes = (typed.unet, typed.mp_unet, typed.dit)
        if typed.network is not None or typed.net is not None or any(own != type(own)() for own in shapes):
            raise UserError("A prior has a network of its own: --prior.width and --prior.blocks shape it.")
        steps = STEPS if typed.steps is None and typed.length is None else made.steps
        return replace(made, steps=steps, net=MLPChoice(self.width, self.blocks))

    def finish(self, trained, pictures, run):
        own = shlex.quote(str(run.folder))
        return [f"model   {run.model_path}", f"next    backdrift sample RUN --prior {own}"]
