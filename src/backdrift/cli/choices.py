"""Names on the command line to objects of the library, in one place."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields

from backdrift.cli import nearest
from backdrift.errors import UserError


def choose(prefix: str, word: str):
    """The registered object of this name with its defaults: choose("solver", "ddim") is DDIM().

    A trailing number is the order: "dpmpp3" is DPMpp(order=3). Raises `UserError` for an unknown name.
    """
    from backdrift.config import kinds

    # those that need arguments (a shifted schedule, say) are for Python
    known = {name.lower(): cls for name, cls in kinds(prefix).items() if all(map(_has_default, fields(cls)))}
    name = word.lower().replace("-", "").replace("++", "pp")
    if name in known:
        return known[name]()
    stem = name.rstrip("0123456789")
    if name != stem and stem in known and any(field.name == "order" for field in fields(known[stem])):
        return known[stem](order=int(name[len(stem) :]))
    raise UserError(f"There is no {prefix} {word!r}{nearest(name, known)}; the names are {', '.join(sorted(known))}.")


def _has_default(field: Field) -> bool:
    return not field.init or field.default is not MISSING or field.default_factory is not MISSING


def solver(word: str | None):
    """A solver by name, or None."""
    from backdrift.sample import solvers  # noqa: F401  (registers them)

    return None if word is None else choose("solver", word)


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
