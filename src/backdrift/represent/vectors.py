"""The representations of a set of pictures as data to train on: the first of RCG's two stages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.data.pictures import Pictures
from backdrift.train.networks import NetChoice

AT_ONCE = 512  # pictures through the encoder


@dataclass(frozen=True, eq=False)
class Vectors:
    """N vectors (N, size) in place of pictures, with the conditions that those carry; what a training asks of its data.

    carried: conditions, (N, ...) each. classes, nulls, source: as `Pictures` has them. fingerprint: of pictures and
    encoder. held: so many of them, the last, are held out.
    """

    values: Tensor
    carried: dict[str, Tensor]
    classes: tuple[str, ...]
    nulls: dict[str, int]
    source: dict
    fingerprint: str
    held: int = 0

    @classmethod
    @torch.no_grad()
    def of(cls, pictures: Pictures, encode: Callable[[Tensor], Tensor], encoder: str) -> Vectors:
        """encode: from (B, C, H, W) to (B, size). encoder: what tells it apart from others, such as a checksum."""
        train, held_out = pictures.split()
        values = [
            encode(part.tensor(range(low, min(low + AT_ONCE, len(part))))).float().cpu()
            for part in (train, held_out)
            for low in range(0, len(part), AT_ONCE)
        ]
        conds = [part.cond() for part in (train, held_out)]
        carried = {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}
        source = {"kind": "representations", "of": pictures.source, "encoder": encoder}
        mark = hashlib.blake2b(f"{pictures.fingerprint} {encoder}".encode(), digest_size=8).hexdigest()
        return cls(torch.cat(values), carried, pictures.classes, pictures.nulls, source, mark, len(held_out))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int]:
        """(size,)."""
        return tuple(self.values.shape[1:])

    @property
    def std(self) -> float:
        """Standard deviation of all numbers."""
        return float(self.values.double().std())

    @property
    def radius(self) -> float:
        """The largest root mean square of a vector."""
        return float(self.values.double().square().mean(1).sqrt().max())

    def tensor(self, indices=None) -> Tensor:
        """(B, size); all when `indices` is None."""
        return self.values if indices is None else self.values[indices]

    def cond(self, indices=None) -> dict[str, Tensor]:
        """The conditions, (B, ...) each."""
        return {name: value if indices is None else value[indices] for name, value in self.carried.items()}

    def split(self) -> tuple[Vectors, Vectors]:
        """(train, validation): those of the pictures' own split."""
        cut = len(self) - self.held
        return self._part(slice(0, cut), "train"), self._part(slice(cut, None), "validation")

    def _part(self, rows: slice, part: str) -> Vectors:
        source = {"kind": "split", "part": part, "of": self.source}
        return Vectors(self.values[rows], self.cond(rows), self.classes, self.nulls, source, self.fingerprint)


@kind("net.MLP")
@dataclass(frozen=True)
class MLPChoice(NetChoice):
    """The library's network for vectors (`backdrift.nets.MLP`), whose arguments these are."""

    width: int = 256
    blocks: int = 4
    dropout: float = 0.0

    def build(self, shape, classes, outputs=None):
        from backdrift.nets.mlp import MLP

        return MLP(shape[0], classes=classes, **vars(self))
