"""Pictures in, pictures out.

`digits()` and `pictures(path)` read a data set into a `Pictures`, `scenes(count)` draws one; `load(source)` gives the
same one again;
`save_grid` and `save_pictures` write tensors as files.
"""

from __future__ import annotations

from backdrift.config import from_config
from backdrift.data.digits import digits
from backdrift.data.files import grid_png, save_grid, save_pictures, saved_numbers, to_uint8
from backdrift.data.fit import Crop, Pad, Stretch
from backdrift.data.folder import pictures
from backdrift.data.pictures import Pictures
from backdrift.data.scenes import scenes
from backdrift.data.single import read_mask, read_picture
from backdrift.errors import UserError

__all__ = [
    "Crop",
    "Pad",
    "Pictures",
    "Stretch",
    "digits",
    "grid_png",
    "load",
    "pictures",
    "read_mask",
    "read_picture",
    "save_grid",
    "save_pictures",
    "saved_numbers",
    "scenes",
    "to_uint8",
]


def load(source: dict, on_progress=None) -> Pictures:
    """Rebuild the pictures that a `Pictures.source` describes.

    Raises `UserError` if they are gone, or are not the same as when the source was recorded.
    """
    kind = source.get("kind")
    if kind == "split":
        train, validation = load(source["of"], on_progress).split()
        return train if source["part"] == "train" else validation
    if kind == "subset":
        return load(source["of"], on_progress).subset(source["indices"])
    if kind == "digits":
        found, where = digits(validation=source["validation"]), "scikit-learn's digits"
    elif kind == "scenes":
        found = scenes(source["count"], seed=source["seed"], validation=source["validation"])
        where = "the scenes"
    elif kind == "pictures":
        found, where = _load_pictures(source, on_progress), source["path"]
    else:
        raise UserError(f"There is no kind of data called {kind!r}; the kinds are digits, scenes and pictures.")
    if found.fingerprint != source["fingerprint"]:
        raise UserError(
            f"The pictures of {where} are not those recorded (fingerprint {source['fingerprint']}, now "
            f"{found.fingerprint}); put the old ones back, or start a new run."
        )
    return found


def _load_pictures(source: dict, on_progress) -> Pictures:
    return pictures(
        source["path"],
        source["size"] and tuple(source["size"]),
        channels=source["channels"],
        fit=from_config(source["fit"]),
        background=tuple(source["background"]),
        skip_broken=source["skip_broken"],
        validation=source["validation"],
        block=source["block"],
        cache=source.get("cache"),
        on_progress=on_progress,
    )
