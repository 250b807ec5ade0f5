"""Networks that stand on others: shown pictures beside the state, controlled by them, or adapted at low rank.

Each choice holds the choice of the network it stands on, so a run's config says all that is needed to build it again. A
controlled run keeps the base's weights in its own model.safetensors. An adapter's holds the adapter alone, a few
percent of the base, and names the base by its folder and by a checksum of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.train.checkpoint import checksum, put
from backdrift.train.networks import FileNet, GivenNet, MPUNetChoice, NetChoice
from backdrift.train.texts import TextEncoder


@dataclass(frozen=True)
class Onto(NetChoice):
    """net: the network that it stands on, one of the library's own."""

    net: NetChoice

    def __post_init__(self):
        if isinstance(self.net, (FileNet, GivenNet)):
            raise UserError("Only the library's own networks can be built upon, not one of someone's own.")


@kind("net.Beside")
@dataclass(frozen=True)
class BesideChoice(Onto):
    """`nets.beside.Beside`: condition pictures as further channels. pictures: their names and channels."""

    pictures: Mapping[str, int]

    def build(self, shape, classes, outputs=None):
        from backdrift.nets.beside import Beside

        seen = (shape[0] + sum(self.pictures.values()), *shape[1:])
        return Beside(self.net.build(seen, classes, outputs or shape[0]), self.pictures)

    def start(self, net, tensors, complaint):
        """From weights of its own kind, or of the network alone, to which the new channels are nothing at first."""
        if "entry.weight" in tensors:
            tensors = {f"net.{name}": value for name, value in tensors.items()}
            entry, own = tensors["net.entry.weight"], net.net.entry.weight
            if not hasattr(net.net, "gain"):  # the magnitude-preserving network ends its channels otherwise
                more = entry.new_zeros(len(entry), max(0, own.shape[1] - entry.shape[1]), *entry.shape[2:])
                tensors["net.entry.weight"] = torch.cat([entry, more], 1)
        put(tensors, net, complaint)


@kind("net.Controlled")
@dataclass(frozen=True)
class ControlledChoice(Onto):
    """`nets.control.Controlled`: a side network follows condition pictures. pictures: their names and channels."""

    pictures: Mapping[str, int]

    @property
    def pace(self) -> float:
        """That of the base, but for the magnitude-preserving one: the joins are ordinary layers."""
        return 1.0 if isinstance(self.net, MPUNetChoice) else self.net.pace

    def build(self, shape, classes, outputs=None):
        from backdrift.nets.control import Controlled

        return Controlled(self.net.build(shape, classes, outputs), self.pictures)

    def start(self, net, tensors, complaint):
        """From the weights of the base, which the side then copies."""
        own = getattr(net, "net", net)  # within the reader of its texts, where there is one
        parts = {"net.": own.base, "reader.": net.reader} if own is not net else {"": own.base}
        for prefix, part in parts.items():
            put({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, part, complaint)
        own.begin()

    def reading(self, net, text):
        """The reader is the base's and stays as it is."""
        made = text.around(net)
        made.reader.requires_grad_(False)
        return made


@kind("net.Adapted")
@dataclass(frozen=True)
class AdaptedChoice(Onto):
    """`nets.lora.LowRank`: low-rank adapters of a run's weights.

    base: the run's folder. weights: a checksum of what its model.safetensors holds. rank: of the adapters. text: what
    reads the base's texts, if it was trained with them; it is adapted as well.
    """

    base: str
    weights: int
    rank: int = 4
    text: TextEncoder | None = None

    @classmethod
    def of(cls, net: NetChoice, base: Path, rank: int, text: TextEncoder | None = None) -> AdaptedChoice:
        """Adapters for the run `base`, whose network is `net`."""
        return cls(net, str(Path(base).resolve()), checksum(weights_of(base)), rank, text)

    def build(self, shape, classes, outputs=None):
        """Raises `UserError` where the base is gone or its weights are others."""
        from backdrift.nets.lora import LowRank

        tensors = weights_of(self.base)
        if checksum(tensors) != self.weights:
            raise UserError(f"This adapter was trained for another base than the weights that {self.base} holds now.")
        net = self.net.build(shape, classes, outputs)
        net = net if self.text is None else self.net.reading(net, self.text)
        put(tensors, net, f"The weights of {self.base} do not fit the network that the adapter was trained for")
        return LowRank(net, self.rank)

    def start(self, net, tensors, complaint):
        """The base's weights are there already; others have no meaning."""

    def reading(self, net, text):
        """The base reads for itself."""
        return net


def weights_of(folder: Path | str) -> dict[str, torch.Tensor]:
    """The weights of a run. Raises `UserError` where there are none."""
    try:
        return load_file(Path(folder) / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"There is no model in {folder}, on which an adapter stands; where the base has moved, name it: "
            "backdrift sample BASE --adapter RUN, or bd.adapt(base, run)."
        ) from error
