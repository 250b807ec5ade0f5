"""`backdrift score`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli import nearest
from backdrift.cli.parse import parse, say
from backdrift.errors import UserError

METHODS = ("bound", "steps", "ode", "mmse")


@dataclass(frozen=True)
class Score:
    """How probable a run finds pictures, in bits per dimension, with a standard error.

    The figure has its definition printed with it, and goes into the run as score-METHOD.json.
    """

    run: Positional[Path]
    """The run folder."""
    data: str = "held-out"
    """Pictures to score: "held-out" (the run's own), a folder, .zip, .npy/.npz, or "digits"."""
    method: str = "bound"
    """bound (variational, 256 levels), steps (that of a model of few steps, with its learned variances if it has them),
    ode (probability-flow density) or mmse (integral of squared errors)."""
    n: int | None = None
    """Pictures to score, the first ones; left out, all."""
    steps: int | None = None
    """Noise levels per draw (bound, mmse; 100), steps of the model (steps; 50) or Runge-Kutta steps of four calls
    (ode; 25)."""
    fraction: float | None = None
    """Of the reverse variances where they are not learned: 0 is DDPM's small one, 1 its large one (steps; 0)."""
    draws: int | None = None
    """Independent estimates per picture (bound, steps, mmse; 2), or probes of the trace (ode; 4)."""
    finest: float | None = None
    """Noise over signal at which the measure stops (bound, steps: 0.0078, one level; ode and mmse: 0.0023)."""
    clock: str | None = None
    """Spread the noise levels evenly over the times of this schedule (bound): a name, a .json file, or learned, which
    fits one to the run for the least variance and keeps it in the run as schedule.json."""
    labels: bool = False
    """Score each picture given its label; left out, without."""
    size: int | None = None
    """Side to which the pictures of --data are resized."""
    fit: str | None = None
    """What to do with other proportions or mixed sizes: crop, pad or stretch."""
    seed: int = 0
    batch: int = 64
    """Pictures per call."""
    device: str | None = None
    net: str | None = None
    """The network's own file, for a run trained with --net."""


def main(arguments: list[str]) -> None:
    options = parse(Score, "score", arguments)
    if options.method not in METHODS:
        raise UserError(
            f"There is no method {options.method!r}{nearest(options.method, METHODS)}; choose {', '.join(METHODS)}."
        )
    for name, least in (("n", 2), ("steps", 1), ("draws", 2), ("batch", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is at least {least}, not {value}.")
    from backdrift.config import to_config
    from backdrift.files import write_json
    from backdrift.likelihood import score
    from backdrift.model import load
    from backdrift.progress import counting_bar
    from backdrift.train.networks import FileNet

    model = load(options.run, options.device, None if options.net is None else FileNet.of(options.net))
    if model.folder is None:
        raise UserError(f"{options.run} is a file; a score goes into its run: give the run's folder.")
    pictures, how = wanted(options, model), method(options)
    cond = labels(options, model, pictures)
    if options.clock is not None:
        how = replace(how, clock=clock(options, model, pictures, cond, how))
    with counting_bar("scoring") as bar:
        found = score(
            model.denoiser,
            pictures.tensor(),
            how,
            cond=cond,
            seed=options.seed,
            batch=options.batch,
            on_step=bar,
        )
    for line in found.lines():
        say(line)
    given = "given their labels" if cond else "without labels"
    settings = to_config(vars(how))
    words = ", ".join(f"{name} {value:.4g}" for name, value in settings.items() if isinstance(value, (int, float)))
    say(f"data {options.data}, {given}, seed {options.seed}, {words}")
    facts = {"method": options.method, "data": options.data, "labels": bool(cond), "seed": options.seed, **settings}
    path = model.folder / f"score-{options.method}.json"
    write_json(path, {**facts, "fingerprint": pictures.fingerprint, **found.to_dict()})
    say(f"score   {path}")


def method(options: Score):
    """The library's object for --method, with what was typed."""
    from backdrift.likelihood import ByBound, ByFlow, ByMmse, BySteps

    if options.fraction is not None and options.method != "steps":
        raise UserError("--fraction is of the variances of a model of few steps: it goes with --method steps.")
    if options.clock is not None and options.method != "bound":
        raise UserError("--clock says where the bound is evaluated: it goes with --method bound.")
    draws = "probes" if options.method == "ode" else "draws"
    typed = {"steps": options.steps, draws: options.draws, "finest": options.finest, "fraction": options.fraction}
    chosen = {"bound": ByBound, "steps": BySteps, "ode": ByFlow, "mmse": ByMmse}[options.method]
    return chosen(**{name: value for name, value in typed.items() if value is not None})


def clock(options: Score, model, pictures, cond, how):
    """The schedule of --clock; one that is learned is learned on the pictures that are scored, with other noises, which
    leaves their score's expectation as it is."""
    from backdrift.cli import choices
    from backdrift.config import to_config
    from backdrift.files import write_json
    from backdrift.objective import fit_schedule
    from backdrift.progress import counting_bar

    if options.clock != "learned":
        return choices.schedule(options.clock)
    first = how.end(model.denoiser.process.schedule)
    with counting_bar("learning a schedule") as bar:
        found = fit_schedule(model.denoiser, pictures.tensor(), cond=cond, first=first, seed=options.seed, on_step=bar)
    path = model.folder / "schedule.json"
    write_json(path, to_config(found))
    say(f"schedule {path}")
    return found


def wanted(options: Score, model):
    """The pictures to score. Raises `UserError` where the model cannot see them or there are less than `n`."""
    from backdrift import data
    from backdrift.cli.train import PictureOptions, Train, read
    from backdrift.run import Run

    if options.data == "held-out":
        if options.size is not None or options.fit is not None:
            raise UserError("The held-out pictures are what the run saw; --size and --fit go with --data PATH.")
        _, pictures = data.load(Run(options.run).config()["data"]["source"]).split()
    else:
        how = PictureOptions(size=options.size, fit=options.fit, channels=_channels(options, model))
        pictures = read(Train(data=options.data, pictures=how))
    if pictures.shape != tuple(model.event_shape):
        raise UserError(
            f"The pictures of {options.data} have the shape {pictures.shape}, but the run knows "
            f"{tuple(model.event_shape)}; give --size {model.event_shape[-1]} to make them alike."
        )
    if options.n is not None and options.n > len(pictures):
        raise UserError(f"{options.data} has {len(pictures)} pictures, so --n {options.n} is too many.")
    return pictures if options.n is None else pictures.subset(slice(options.n))


def _channels(options: Score, model) -> int | None:
    # the digits take no options, and event shapes beyond grey and colour are refused by their shape
    channels = model.event_shape[0]
    return channels if options.data != "digits" and channels in (1, 3) else None


def labels(options: Score, model, pictures):
    """{"label": (n,)} in the model's numbering, or None."""
    if not options.labels:
        return None
    if pictures.labels is None:
        raise UserError(f"The pictures of {options.data} have no labels; leave --labels out.")
    names = [pictures.classes[k] for k in pictures.labels.tolist()]
    return {"label": model.labels(names, len(names))}
