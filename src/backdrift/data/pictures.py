"""A set of pictures, in memory or mapped into it, and the two parts it splits into.

Pixels stay the bytes that they were in the files; they become float32 in [-1, 1] a batch at a time. The part of
a picture in the split is decided by a hash of its own pixels, so it depends on nothing else: not on the order of the
files, not on their names, not on which other pictures are there. Exact copies therefore always land on the same side,
without which a comparison of "nearest training picture" with "nearest held-out picture" would not be honest.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from backdrift.data.cache import Rows
from backdrift.data.census import Census
from backdrift.errors import UserError


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text per picture, each different one kept once. table: (U, ...). which: int64 (N,)."""

    table: Tensor
    which: Tensor

    def __getitem__(self, indices) -> Tensor:
        return self.table[self.which[indices]]

    def take(self, positions: Tensor) -> Encoded:
        """Those of the pictures at these positions."""
        return Encoded(self.table, self.which[positions])


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures of one shape (C, H, W), with their labels and where they came from.

    pixels: uint8 (N, C, H, W); 0..255 stands for [-1, 1]. A tensor, or `Rows` on disk, which are read by indexing.
    labels: int64 (N,), in 0..len(classes) - 1, or None.
    classes: the name of each label; empty without labels.
    names: one per picture, for reports and error messages.
    texts: one description per picture, or None.
    source: JSON-able; `backdrift.data.load(source)` rebuilds the same pictures.
    validation: the fraction that `split` holds out, between 0 and 1.
    block: this many consecutive pictures share a side of the split (neighbouring slices, frames of one film).
    census: of the pixels, where it is known; worked out when it is first needed otherwise.
    encoded: the texts as a model reads them (`reading`), or None.

    Raises `UserError` if the fields do not fit each other.
    """

    pixels: Tensor | Rows
    labels: Tensor | None
    classes: tuple[str, ...]
    names: list[str]
    source: dict = field(repr=False)
    texts: list[str] | None = None
    validation: float = 0.1
    block: int = 1
    census: Census | None = field(default=None, repr=False)
    encoded: Encoded | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise UserError("Pictures need uint8 pixels of shape (N, C, H, W).")
        if len(self.names) != len(self) or (self.texts is not None and len(self.texts) != len(self)):
            raise UserError(f"There are {len(self)} pictures, but another number of names or texts.")
        if self.labels is not None:
            if self.labels.shape != (len(self),) or self.labels.dtype != torch.int64:
                raise UserError(f"There are {len(self)} pictures, so labels must be int64 of shape ({len(self)},).")
            if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
                raise UserError(f"Labels must lie in 0 to {len(self.classes) - 1}, one number per class.")
        check_split(self.validation, self.block)

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.pixels.shape[1:])

    def tensor(self, indices=None) -> Tensor:
        """Float32 (B, C, H, W) in [-1, 1]; all pictures when `indices` is None."""
        chosen = self.pixels[:] if indices is None else self.pixels[indices]
        return chosen.to(torch.float32) / 127.5 - 1

    def cond(self, indices=None) -> dict[str, Tensor]:
        """Every condition that the pictures carry: {"label": int64 (B,), "text": (B, ...)}, each if there is one."""
        carried = {"label": self.labels, "text": self.encoded}
        chosen = slice(None) if indices is None else indices
        return {name: value[chosen] for name, value in carried.items() if value is not None}

    @property
    def nulls(self) -> dict[str, int]:
        """What stands for no condition, by name: the label `len(classes)`, and a text of zeros."""
        return {"label": len(self.classes), "text": 0}

    def reading(self, encode: Callable[[Sequence[str]], Tensor]) -> Pictures:
        """The same pictures, which carry their texts too. encode: from texts to (B, ...), zeros for no text.

        Raises `UserError` where a picture has no text, and what `encode` raises.
        """
        self.check_texts()
        number = {text: i for i, text in enumerate(dict.fromkeys(self.texts))}
        which = torch.tensor([number[text] for text in self.texts])
        return replace(self, encoded=Encoded(encode(list(number)), which))

    def check_texts(self) -> None:
        """Raise `UserError` where a picture has no text."""
        if self.texts is None:
            raise UserError(
                "These pictures have no texts to learn from: give each one in a metadata.jsonl, as "
                '{"file_name": "1.png", "text": "a red heart"}.'
            )
        missing = [name for name, text in zip(self.names, self.texts, strict=True) if not text.strip()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self)} pictures have no text ({missing[0]}): give each one, or leave them out."
            )

    def subset(self, indices) -> Pictures:
        """The pictures at `indices` (a sequence or tensor of positions, or a slice), in that order."""
        chosen = torch.arange(len(self))[indices]
        return self._take(chosen, {"kind": "subset", "indices": chosen.tolist(), "of": self.source})

    def split(self) -> tuple[Pictures, Pictures]:
        """(train, validation): about `validation` of the pictures are held out, at least one in each part.

        A picture is held out where the hash of its pixels, read as a number in [0, 1), is below `validation`; with
        `block` > 1 the first picture of each block decides for all of it, and a held-out picture with an exact copy
        in the training part joins it there.

        Raises `UserError` when the pictures are all copies of one, so that nothing can be held out.
        """
        digests = self._known.digests
        keys = digests[:: self.block]
        held = keys < np.uint64(self.validation * 2.0**64)
        if not held.any():
            held = keys == keys.min()
        if held.all():
            held = keys != keys.max()
        held = np.repeat(held, self.block)[: len(self)]
        held &= ~np.isin(digests, digests[~held])
        if held.all() or not held.any():
            raise UserError(
                f"These {len(self)} pictures are copies of one another (or lie in one block), so none can be held out "
                "for validation; give at least two different pictures."
            )
        parts = (("train", ~held), ("validation", held))
        return tuple(
            self._take(torch.from_numpy(np.flatnonzero(mask)), {"kind": "split", "part": part, "of": self.source})
            for part, mask in parts
        )

    @property
    def std(self) -> float:
        """Standard deviation of all pixel values of this set, in [-1, 1] units (of the training part, ask that)."""
        return self._scale[0]

    @property
    def radius(self) -> float:
        """Largest norm of a picture, divided by sqrt(C H W): at most 1."""
        return self._scale[1]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, a hash of shape, pixels and labels in order."""
        digest = hashlib.blake2b(repr((len(self), *self.shape)).encode(), digest_size=8)
        digest.update(self._known.digests.tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def _known(self) -> Census:
        return Census.of(self.pixels) if self.census is None else self.census

    @cached_property
    def _scale(self) -> tuple[float, float]:
        """(std, radius), from exact integer sums of 2 u - 255 = 255 x."""
        sums = self._known.sums
        total, squares = (int(column.sum()) for column in sums.T)
        largest, count = int(sums[:, 1].max()), math.prod(self.pixels.shape)
        std = math.sqrt(count * squares - total * total) / (255 * count)
        return std, math.sqrt(largest / math.prod(self.shape)) / 255

    def _take(self, positions: Tensor, source: dict) -> Pictures:
        order = positions.tolist()
        return Pictures(
            pixels=self.pixels.take(positions) if isinstance(self.pixels, Rows) else self.pixels[positions],
            labels=None if self.labels is None else self.labels[positions],
            classes=self.classes,
            names=[self.names[i] for i in order],
            source=source,
            texts=None if self.texts is None else [self.texts[i] for i in order],
            encoded=None if self.encoded is None else self.encoded.take(positions),
            validation=self.validation,
            block=self.block,
            census=self._known.take(positions.numpy()),
        )


def check_memory(need: int, what: str, instead: str = "") -> None:
    """Raise `UserError` if `need` bytes are more than this machine has, where it tells; instead: " or what to do"."""
    if not hasattr(os, "sysconf"):
        return
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        raise UserError(
            f"{what} need {need / 1e9:.1f} GB of memory and there are {have / 1e9:.1f}; choose a smaller size{instead}."
        )


def check_split(validation: float, block: int) -> None:
    """Raise `UserError` unless 0 < validation < 1 and block is a whole number from 1."""
    if not 0 < validation < 1:
        raise UserError(f"The validation fraction is {validation}; it must lie between 0 and 1, such as 0.1.")
    if not isinstance(block, int) or block < 1:
        raise UserError(f"The block of the split is {block!r}; it must be a whole number from 1.")
