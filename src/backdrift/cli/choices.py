"""Names on the command line to objects of the library, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature

from backdrift.cli import nearest
from backdrift.errors import UserError


def choose(prefix: str, word: str, makers: Mapping[str, Callable] | None = None):
    """The registered object of this name with its defaults: choose("solver", "ddim") is DDIM().

    A trailing number is the order: "dpmpp3" is DPMpp(order=3). makers: functions that make further ones.

    Raises `UserError` for an unknown name.
    """
    from backdrift.config import kinds

    # those that need arguments (a shifted schedule, say) are for Python
    known = {name.lower(): make for name, make in {**kinds(prefix), **(makers or {})}.items() if _needs_nothing(make)}
    name = word.lower().replace("-", "").replace("++", "pp")
    if name in known:
        return known[name]()
    stem = name.rstrip("0123456789")
    if name != stem and stem in known and "order" in signature(known[stem]).parameters:
        return known[stem](order=int(name[len(stem) :]))
    raise UserError(f"There is no {prefix} {word!r}{nearest(name, known)}; the names are {', '.join(sorted(known))}.")


def _needs_nothing(make: Callable) -> bool:
    return all(parameter.default is not parameter.empty for parameter in signature(make).parameters.values())


def schedule(word: str):
    """A noise schedule by name, or from a .json file such as `backdrift score --clock learned` keeps."""
    import json
    from pathlib import Path

    from backdrift.config import from_config
    from backdrift.schedule import Schedule

    path = Path(word)
    if path.suffix != ".json":
        return choose("schedule", word)
    try:
        found = from_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"The schedule {path} cannot be read: {error}.") from error
    if not isinstance(found, Schedule):
        raise UserError(f"{path} holds no noise schedule.")
    return found


def solver(word: str | None):
    """A solver by name, or None."""
    from backdrift.sample import solvers

    # UniPC and others are members of a family, made by functions
    return None if word is None else choose("solver", word, {name: getattr(solvers, name) for name in solvers.__all__})


def grid(word: str | None):
    """A time grid by name, or None."""
    from backdrift.sample import grids  # noqa: F401

    return None if word is None else choose("grid", word)


def fit(word: str | None, background: tuple[int, int, int]):
    """crop, pad or stretch as the object that does it, or None."""
    from backdrift.data import Crop, Pad, Stretch

    if word is None:
        return None
    made = {"crop": Crop, "stretch": Stretch, "pad": lambda: Pad(background)}
    if word not in made:
        raise UserError(f"There is no fit {word!r}{nearest(word, made)}; choose crop, pad or stretch.")
    return made[word]()


def tracker(word: str, run):
    """tensorboard or wandb as the object that shows the records of `run` there."""
    from backdrift.train.trackers import TensorBoard, WeightsAndBiases

    made = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    if word not in made:
        raise UserError(f"There is no tracker {word!r}{nearest(word, made)}; choose {' or '.join(made)}.")
    return made[word](run)


def features(words: list[str], train):
    """Feature extractors by name, fitted on the training part: pca, pixels, classifier, or a file."""
    from pathlib import Path

    from backdrift.evaluate import ClassifierFeatures, ExportedFeatures, PixelPCA, Pixels

    pictures = train.tensor()
    found = []
    for word in words:
        if word == "pca":
            found.append(PixelPCA.fit(pictures, min(24, pictures[0].numel(), len(pictures) - 1)))
        elif word == "pixels":
            found.append(Pixels())
        elif word == "classifier":
            if train.labels is None:
                raise UserError("Classifier features need labels, and these pictures have none; use pca or pixels.")
            found.append(ClassifierFeatures.fit(pictures, train.labels))
        elif Path(word).suffix:
            found.append(ExportedFeatures(word))
        else:
            known = ("pca", "pixels", "classifier")
            raise UserError(
                f"There are no features {word!r}{nearest(word, known)}; choose {', '.join(known)} or a file."
            )
    return found
