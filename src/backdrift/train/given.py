"""Text encoders of transformers (CLIP's and T5's) as encoders of a run: frozen, read from a folder, extra "text".

Such an encoder never changes, so each text is encoded once, before training, and the network is shown what came out:
the last hidden states of all pieces, those that begin and end a text among them (Rombach et al. 2022,
arXiv:2112.10752; Saharia et al. 2022, arXiv:2205.11487). A run records the encoder's folder, not its weights: the
folder must be there when the model is asked for a text.

Only folders are read, and only weights in safetensors: nothing is fetched, and no code in a folder is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.train.texts import TextEncoder, check_length

_AT_ONCE = 64  # texts


@dataclass(frozen=True)
class Given(TextEncoder):
    """path: a folder that transformers wrote, with tokenizer. width: of its hidden states. length: pieces at most."""

    path: str
    width: int
    length: int

    model: ClassVar[str]  # the class of transformers that reads the folder

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(B, M, width + 1): hidden states, then 1 for a piece and 0 for none; M is the longest of these texts.

        Raises `UserError` as `TextEncoder.encode` does, and where the folder is gone.
        """
        tokenizer, encoder = loaded(self.path, self.model)
        found = tokenizer(list(texts))["input_ids"]
        for text, numbers in zip(texts, found, strict=True):
            check_length(text, len(numbers) if text.strip() else 0, self.length)
        made = torch.zeros(len(found), max(map(len, found)), self.width + 1)
        for low in range(0, len(found), _AT_ONCE):
            part = found[low : low + _AT_ONCE]
            longest = max(map(len, part))
            # what fills a row up is masked, so any number will do
            numbers = torch.tensor([row + [0] * (longest - len(row)) for row in part])
            there = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in part])
            with torch.no_grad():
                hidden = encoder(input_ids=numbers, attention_mask=there).last_hidden_state
            rows = made[low : low + _AT_ONCE, :longest]
            rows[..., -1] = there
            rows[..., :-1] = hidden * there[:, :, None]
        return made

    def reader(self) -> nn.Module:
        from backdrift.nets.text import GivenText

        return GivenText(self.width)


@kind("text.CLIP")
@dataclass(frozen=True)
class CLIPText(Given):
    """The text encoder of a CLIP; it reads as many pieces as it has positions, usually 77."""

    model: ClassVar[str] = "CLIPTextModel"


@kind("text.T5")
@dataclass(frozen=True)
class T5Text(Given):
    """The encoder of a T5, which has no longest text of its own."""

    model: ClassVar[str] = "T5EncoderModel"


@lru_cache(maxsize=2)
def loaded(path: str, model: str):
    """(tokenizer, encoder) of a folder. Raises `UserError` where they cannot be read."""
    from backdrift.interop.extras import first_line, need

    transformers = need("transformers", "text")
    if not Path(path).is_dir():
        raise UserError(f"The text encoder was in {path}, and is there no more; put it back to ask for a text.")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        encoder = getattr(transformers, model).from_pretrained(path, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"The text encoder in {path} cannot be read: {first_line(error)}.") from error
    return tokenizer, encoder.eval().requires_grad_(False)
