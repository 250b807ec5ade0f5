"""`backdrift reconstruct`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError


@dataclass(frozen=True)
class Reconstruct:
    """Reconstruct a picture from measurements with a run as the prior: draws, their mean, their standard deviation.

    Writes mean.npy, std.npy, samples.npy in the units of what was read, and page.html, into a folder.
    """

    run: Positional[Path]
    """The run folder."""
    operator: str
    """What was measured: denoise, quantise:8, inpaint, down:2, blur:1, response:1, jpeg:30, clip:2, mri:4, radon:20,
    limited:90, fan:20, compressed:0.25, phase:2, or my_file.py:A, a function of (event_shape, noise)."""
    y: Path | None = None
    """The measurement, a .npy of the operator's shape (or a picture, where that is a picture's)."""
    truth: Path | None = None
    """The true picture, if it is known: for coverage and errors. Without --y it is measured here."""
    held_out: int | None = None
    """Instead of --truth: this picture of the run's held-out part."""
    noise: float = 0.05
    """Standard deviation of the measurement's noise, in y's units."""
    sampler: str | None = None
    """mmps, pigdm, dps, daps, ddrm, ...; by default mmps for linear operators with Gaussian noise, else daps."""
    mask: Path | None = None
    """For inpaint: white where the picture is seen."""
    window: str | None = None
    """The values that are black and white, such as 0 255 as "0,255", or lung, soft, liver, brain, bone, body for CT in
    Hounsfield units. By default the file's whole range; for files without one, such as .npy, "-1,1"."""
    part: int | None = None
    """Of a volume, which slice; the middle one by default."""
    n: int = 16
    """How many draws."""
    steps: int = 100
    """Calls of the network for each draw."""
    batch: int = 16
    """Draws at a time; for memory only."""
    label: str | None = None
    """A class by number or name that the picture is known to be of."""
    seed: int = 0
    out: Path | None = None
    """The folder to write; by default reconstructions/OPERATOR in the run."""
    device: str | None = None
    net: str | None = None
    """The network's own file, for a run trained with --net."""


def main(arguments: list[str]) -> None:
    from backdrift.cli.choices import posterior_sampler
    from backdrift.cli.operators import operator
    from backdrift.data import read_mask
    from backdrift.data.values import write_values
    from backdrift.files import write_text
    from backdrift.inverse.reconstruction import reconstruct
    from backdrift.model import load
    from backdrift.report.reconstruction import figures, reconstruction_page
    from backdrift.train.networks import FileNet

    options = parse(Reconstruct, "reconstruct", arguments)
    check(options)
    model = load(options.run, options.device, None if options.net is None else FileNet.of(options.net))
    shape = tuple(model.event_shape)
    mask = None if options.mask is None else read_mask(options.mask, shape)
    window, truth, y = read(options, shape)
    measurement = operator(options.operator, shape, options.noise / window.scale, mask)
    measurement.check_events(shape)
    if y is None:
        y = simulated(measurement, truth, options.seed)
    else:
        y = in_model_units(measurement, y, window)
    sampler = posterior_sampler(options.sampler, measurement)
    made = reconstruct(
        told(model, options.label), sampler, measurement, y, options.n, steps=options.steps, seed=options.seed,
        batch=options.batch,
    )  # fmt: skip
    out = options.out or options.run / "reconstructions" / options.operator.replace(":", "-").replace("/", "-")
    write_values(window.restore(made.mean), out / "mean.npy")
    write_values(made.std * window.scale, out / "std.npy")
    write_values(window.restore(made.samples), out / "samples.npy")
    name = options.sampler or type(sampler).__name__
    words = f"{options.operator}, noise {options.noise:g}, by {name}: {options.n} draws of {options.steps} steps"
    next_ = (
        f"Whether {name} can be believed on this problem is measured by backdrift diagnose {options.run} --operator "
        f"{options.operator} --sampler {name.lower()}."
    )
    write_text(out / "page.html", reconstruction_page(made, truth, "Reconstruction", words, [next_]))
    for what, value in figures(made, truth):
        say(f"{what}: {value}")
    say(f"in the units of what was read, and a page  {out}")


def check(options: Reconstruct) -> None:
    """Raises `UserError` for choices that exclude each other."""
    if options.truth is not None and options.held_out is not None:
        raise UserError("--truth and --held-out are both the true picture; choose one.")
    if options.y is None and options.truth is None and options.held_out is None:
        raise UserError("Give the measurement as --y FILE, or a picture to measure as --truth FILE or --held-out K.")
    if not options.noise > 0:
        raise UserError(f"The noise is a positive standard deviation (a nearly exact y: 1e-4), not {options.noise}.")
    if options.n < 2 or options.steps < 1 or options.batch < 1:
        raise UserError("A reconstruction needs --n of at least 2, and --steps and --batch of at least 1.")


def read(options: Reconstruct, shape: tuple[int, int, int]):
    """(window, the true picture in the model's units or None, y in its own units or None)."""
    from backdrift.data.values import Window, read_values

    files = [path for path in (options.truth, options.y) if path is not None]
    found = {path: read_values(path, options.part) for path in files}
    window = chosen_window(options.window) or next((v.full for v in found.values() if v.full), Window(-1.0, 1.0))
    truth = None
    if options.truth is not None:
        truth = window.inside(found[options.truth].data)
        truth = truth[None] if truth.ndim == 2 else truth
        if tuple(truth.shape) != shape:
            raise UserError(f"{options.truth.name} is {tuple(truth.shape)}, and the model's pictures are {shape}.")
    if options.held_out is not None:
        truth = held_out(options.run, options.held_out)
    return window, truth, None if options.y is None else found[options.y].data


def chosen_window(words: str | None):
    """A window by name or as "low,high"; None where nothing was asked for."""
    from backdrift.cli import nearest
    from backdrift.data.values import HOUNSFIELD, Window

    if words is None or words in HOUNSFIELD:
        return HOUNSFIELD.get(words)
    try:
        low, high = (float(word) for word in words.split(","))
    except ValueError:
        known = ", ".join(HOUNSFIELD)
        raise UserError(
            f'A window is two numbers, "low,high", or one of {known}, not {words!r}{nearest(words, HOUNSFIELD)}.'
        ) from None
    return Window(low, high)


def held_out(run: Path, number: int):
    """Picture `number` of the run's held-out part, (C, H, W) in [-1, 1]."""
    from backdrift import data
    from backdrift.run import Run

    _, validation = data.load(Run(run).config()["data"]["source"]).split()
    if not 0 <= number < len(validation):
        raise UserError(f"The run holds out pictures 0 to {len(validation) - 1}, so there is no {number}.")
    return validation.tensor([number])[0]


def simulated(measurement, truth, seed: int):
    """A measurement of the truth."""
    from backdrift.noise import Noise

    return measurement.draw(truth[None], Noise.of(seed, 1).at("y"))[0]


def in_model_units(measurement, y, window):
    """y of a linear measurement of pictures in the file's units, as that of pictures in the model's.

    With x' = scale (x + 1) + low, A x' = scale A x + A (scale + low): what a picture of the middle value gives is taken
    off. Raises `UserError` for another shape, missing values, or a window for what is not linear.
    """
    import math

    import torch

    from backdrift.data.values import Window
    from backdrift.inverse import Inpaint, LinearMeasurement

    if isinstance(measurement, Inpaint) and y.numel() == math.prod(measurement.event_shape):
        # a whole picture, of which the mask's part is used
        y = measurement.forward(y.view(1, *measurement.event_shape))[0]
    if tuple(y.shape) != measurement.shape and y.numel() == math.prod(measurement.shape):
        y = y.reshape(measurement.shape)
    y = measurement.batched(y)[0]
    if window == Window(-1.0, 1.0):
        return y
    if not isinstance(measurement, LinearMeasurement):
        raise UserError("Only linear measurements can be in other units; give y for pictures in [-1, 1].")
    middle = torch.full((1, *measurement.event_shape), window.scale + window.low)
    return (y - measurement.forward(middle)[0]) / window.scale


def told(model, label: str | None):
    """The model's denoiser, with the label bound to it."""
    from backdrift.inverse.reconstruction import Told

    labels = model.labels(label, 1)
    return model.denoiser if labels is None else Told(model.denoiser, {"label": labels})
