"""Text encoders of transformers, CLIP's and T5's, for models of ours; extra "text".

options = bd.TrainOptions(...).with_text(bd.interop.text.load("folder"))
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from backdrift.errors import UserError
from backdrift.train.given import CLIPText, Given, T5Text, loaded

__all__ = ["CLIPText", "T5Text", "load"]


def load(path: str | os.PathLike, length: int | None = None) -> Given:
    """The encoder in a folder, CLIP or T5 as its config says. length: by default the positions of CLIP, 128 for T5.

    Raises `UserError` where there is no such encoder, or where it has fewer positions than `length`.
    """
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        name = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no folder of a text encoder that transformers wrote.") from error
    where = str(Path(path).resolve())
    if name in ("clip", "clip_text_model"):
        text = config.get("text_config", config)
        most = text["max_position_embeddings"]
        if length is not None and length > most:
            raise UserError(f"The encoder in {path} reads at most {most} pieces, not {length}.")
        found: Given = CLIPText(where, text["hidden_size"], length or most)
    elif name == "t5":
        found = T5Text(where, config["d_model"], length or 128)
    else:
        raise UserError(f"The folder {path} holds a {name}; text encoders of CLIP and T5 can be read.")
    loaded(found.path, found.model)
    return found
