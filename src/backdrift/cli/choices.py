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


def few_step(word: str, guidance: float = 1.0, guidance_to: float | None = None):
    """A method of `backdrift distill` by name. Raises `UserError` for an unknown one, or guidance it cannot take."""
    from backdrift import fewstep
    from backdrift.fewstep import Single

    made = {
        "paths": lambda: fewstep.Paths(guidance, guidance_to),
        "maps": lambda: Single(fewstep.PathMap(guidance=guidance), settles=True),
        "easy": lambda: fewstep.Easy(guidance=guidance),
        "discrete": lambda: fewstep.Discrete(guidance, guidance_to=guidance_to),
        "continuous": lambda: fewstep.Continuous(guidance),
        "progressive": lambda: fewstep.Progressive(guidance, guidance_to=guidance_to),
        "rectified": lambda: fewstep.Rectified(guidance),
        "align": lambda: Single(fewstep.AlignYourFlow(guidance)),
        "trajectory": lambda: Single(fewstep.Trajectory(guidance=guidance)),
        "matching": lambda: Single(fewstep.DistributionMatching(guidance)),
        "adversarial": lambda: Single(fewstep.DistributionMatching(guidance, adversarial=0.1)),
    }
    alone = from_data()
    if word in alone and guidance != 1:
        raise UserError(f"{word} learns from the data and has no teacher to guide; leave --guidance out.")
    made |= {name: lambda objective=objective: Single(objective) for name, objective in alone.items()}
    if word not in made:
        raise UserError(f"There is no method {word!r}{nearest(word, made)}; choose {', '.join(made)}.")
    ranged = ("paths", "discrete", "progressive")
    if guidance_to is not None and word not in ranged:
        raise UserError(f"A range of guidance is for {', '.join(ranged)}, not {word}; leave --guidance-to out.")
    return made[word]()


def from_data():
    """The few-step objectives that need no teacher, by name."""
    from backdrift import fewstep

    return {
        "mean-flow": fewstep.MeanFlow(),
        "alpha-flow": fewstep.AlphaFlow(),
        "shortcut": fewstep.Shortcut(),
        "consistency": fewstep.ImprovedConsistency(),
        "easy-consistency": fewstep.EasyConsistency(base=2.0, stages=8),
        "continuous-consistency": fewstep.ContinuousConsistency(distill=False),
    }


def posterior_sampler(word: str | None, measurement):
    """A posterior sampler by name; by default MMPS for linear measurements with Gaussian noise, else DAPS.

    Raises `UserError` for an unknown name, or one that cannot serve the measurement.
    """
    from backdrift import inverse

    linear = isinstance(measurement, inverse.LinearMeasurement)
    usual = inverse.MMPS() if linear and isinstance(measurement.noise, inverse.GaussianNoise) else inverse.DAPS()
    found = usual if word is None else choose("posterior", word)
    found.check(measurement)
    return found
