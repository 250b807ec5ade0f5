"""Which encoder reads the texts of a run: the library's own, trained with the network, or somebody else's, frozen.

An encoder is recorded in the run's config with all that it needs to read a text again; the library's own with the
pieces that it learned from the captions, so that a run folder is enough by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.data.bytepairs import BytePairs
from backdrift.data.pictures import Pictures
from backdrift.errors import UserError


class TextEncoder(ABC):
    """How texts become a condition; subclasses are frozen dataclasses of a `kind`.

    width: of the tokens that the network is shown. length: the longest text, in pieces.
    """

    width: int
    length: int

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensor:
        """cond["text"] of these texts: (B, M) or (B, M, ...), M up to `length`. Zeros are no text.

        Raises `UserError` for an empty text, and for one that is longer than `length`: nothing is cut.
        """

    @abstractmethod
    def reader(self) -> nn.Module:
        """A new module from cond["text"] to tokens (B, M, width) and where there are any (B, M) (`nets.text`)."""

    def around(self, net: nn.Module) -> nn.Module:
        """`net`, told what the texts say."""
        from backdrift.nets.text import Reading

        return Reading(net, self.reader())


@kind("text.Own")
@dataclass(frozen=True)
class OwnText(TextEncoder):
    """A small transformer that is trained with the network (`nets.text.TextTransformer`).

    pieces: what texts are cut into. length: the longest text, in pieces. width, depth, head_width: of the transformer.
    """

    pieces: BytePairs
    length: int
    width: int = 128
    depth: int = 2
    head_width: int = 32

    @classmethod
    def of(cls, pictures: Pictures, *, size: int = 1024, width: int = 128, depth: int = 2) -> OwnText:
        """For the texts of these pictures: pieces learned from the training part, up to the number `size`, and the
        length of the longest text of all.

        Raises `UserError` where a picture has no text.
        """
        pictures.check_texts()
        pieces = BytePairs.learn(pictures.split()[0].texts, size)
        return cls(pieces, max(map(len, pieces.encode_all(pictures.texts))), width, depth)

    def encode(self, texts):
        found = self.pieces.encode_all(texts)
        for text, numbers in zip(texts, found, strict=True):
            check_length(text, len(numbers), self.length)
        made = torch.zeros(len(found), self.length, dtype=torch.int64)
        for row, numbers in zip(made, found, strict=True):
            row[: len(numbers)] = torch.tensor(numbers)
        return made

    def reader(self):
        from backdrift.nets.text import TextTransformer

        return TextTransformer(self.pieces.size, self.length, self.width, self.depth, self.head_width)


def check_length(text: str, pieces: int, length: int) -> None:
    """Raise `UserError` for a text of no pieces, or of more than `length`."""
    if pieces == 0:
        raise UserError("The text is empty; say what the picture should show, or leave the text out.")
    if pieces > length:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise UserError(
            f"The text {shown!r} has {pieces} pieces, and this model reads at most {length}: say it in fewer words."
        )
