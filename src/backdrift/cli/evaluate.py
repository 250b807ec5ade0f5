"""`backdrift evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError


@dataclass(frozen=True)
class Evaluate:
    """Compare the samples of a run with its held-out pictures, or any two sets of pictures, figure by figure.

    Every figure has its n, an interval, and its floor: what real pictures would get in the samples' place.
    """

    what: Positional[Path]
    """A run folder; or a folder, .zip or .npy of samples, with --against."""
    against: str | None = None
    """Real pictures to compare with: a folder, .zip, .npy/.npz, or "digits"."""
    n: int = 1000
    """Samples to draw from the run."""
    steps: int = 10
    """Calls of the network per sample."""
    guidance: float = 2.0
    """For the label agreement of a run with labels; the other figures are made without guidance."""
    features: tuple[str, ...] = ("pca",)
    """pca (24 principal components of the pixels), pixels, classifier, or an exported file (.pt2, .pt)."""
    size: int | None = None
    """Side to which both sets are resized, with --against."""
    fit: str | None = None
    """What to do with other proportions or mixed sizes, with --against: crop, pad or stretch."""
    seed: int = 0
    device: str | None = None
    net: str | None = None
    """The network's own file, for a run trained with --net."""


def main(arguments: list[str]) -> None:
    options = parse(Evaluate, "evaluate", arguments)
    if options.n < 20:
        raise UserError(f"An evaluation needs at least 20 samples (hundreds tell more), not {options.n}.")
    if not options.guidance >= 0:
        raise UserError(f"A guidance weight is 0 or more, not {options.guidance:g}.")
    if options.against is not None:
        two_sets(options)
    else:
        one_run(options)


def two_sets(options: Evaluate) -> None:
    """Any two sets of pictures."""
    from backdrift.cli.choices import features
    from backdrift.cli.train import PictureOptions, Train, read
    from backdrift.evaluate import evaluate_two

    how = PictureOptions(size=options.size, fit=options.fit)
    samples, real = (read(Train(data=str(data), pictures=how)) for data in (options.what, options.against))
    if samples.shape != real.shape:
        raise UserError(f"The two sets have shapes {samples.shape} and {real.shape}; give --size to make them alike.")
    table = evaluate_two(
        samples.tensor(), real.tensor(), features=features(list(options.features), real), seed=options.seed
    )
    for line in table.lines():
        say(line)


def one_run(options: Evaluate) -> None:
    """A run's samples against its own held-out pictures; the table goes into the run and its report."""
    from backdrift import data
    from backdrift.evaluate.model import evaluate_model
    from backdrift.files import write_json
    from backdrift.model import load
    from backdrift.report.run import write_report
    from backdrift.run import Run
    from backdrift.train.networks import FileNet

    run = Run(options.what)
    config = run.config()
    model = load(run.folder, options.device, None if options.net is None else FileNet.of(options.net))
    pictures = data.load(config["data"]["source"])
    from backdrift.cli.choices import features

    train, _ = pictures.split()
    result = evaluate_model(
        model,
        pictures,
        n=options.n,
        steps=options.steps,
        guidance=1.0 if model.unguided else options.guidance,
        features=features(list(options.features), train),
        seed=options.seed,
    )
    write_json(run.folder / "evaluation.json", result.to_dict())
    for line in result.lines():
        say(line)
    say(f"report  {write_report(run, model, pictures)}")
