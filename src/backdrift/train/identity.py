"""What a run is: the config that repeats it, and whether a command continues that run or asks for another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from backdrift._version import __version__
from backdrift.config import from_config, to_config
from backdrift.data.pictures import Pictures
from backdrift.errors import UserError
from backdrift.run import FORMAT, Run
from backdrift.train.options import TrainOptions


def describe(
    pictures: Pictures, part: Pictures, held_out: Pictures, options: TrainOptions, start_from, command
) -> dict:
    """The config of a run, but for the resolved precision."""
    start = start_from.folder if isinstance(start_from, Run) else start_from
    return {
        "format": FORMAT,
        "backdrift": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "command": list(command),
        "start_from": None if start is None else str(start),
        "data": {
            "source": pictures.source,
            "fingerprint": pictures.fingerprint,
            "shape": list(pictures.shape),
            "classes": list(pictures.classes),
            "std": part.std,
            "radius": part.radius,
            "training": len(part),
            "validation": len(held_out),
            **({} if options.text is None else {"texts": digest(pictures.texts)}),
        },
        "options": to_config(options),
    }


def digest(texts: Sequence[str]) -> str:
    """16 hexadecimal digits, a hash of the texts in order."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()


def refuse_changes(before: dict, now: dict, run: Run) -> None:
    """Raises `UserError` naming the first choice in which the command differs from the run's config."""
    # through the options' class and back, so that a choice that the older release did not have takes its default
    before = {**before, "options": to_config(from_config(before["options"]))}
    chosen = ("start_from", "data", "options")
    then, here = (flat({name: config[name] for name in chosen}) for config in (before, now))
    for name in [*then, *here]:
        # where the data lie and what a user's file is called may change; what is in them may not
        if name.startswith("data.source") or name == "options.net.path":
            continue
        old, new = then.get(name), here.get(name)
        if old != new:
            raise UserError(
                f"{run.folder} holds a run with {name.removeprefix('options.')} = {old}, and now it is {new}: "
                "repeat its own command to continue it, or give another folder."
            )


def flat(tree: object, name: str = "") -> dict[str, object]:
    """Dotted names and leaves of nested mappings; lists are leaves."""
    if not isinstance(tree, dict):
        return {name: tree}
    pairs = [flat(value, f"{name}.{key}" if name else key) for key, value in tree.items()]
    return {key: value for pair in pairs for key, value in pair.items()}
