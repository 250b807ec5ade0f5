"""`backdrift edit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError

NOISE = 0.02  # of the pixels of a small picture, in units of [-1, 1]: rounding, and room for the sampler


@dataclass(frozen=True)
class Edit:
    """Edit a picture with a run's model: a new version, a part filled in, a variation, another label, more pixels.

    Writes one PNG: the picture, the mask if there is one, and the results.
    """

    run: Positional[Path]
    """The run folder."""
    image: Path
    """The picture."""
    mask: Path | None = None
    """White where the picture is kept, black where it is made anew; grey blends."""
    strength: float | None = None
    """How far the picture goes towards noise and comes back anew: above 0, 1 forgets it. By default 1 with a mask or
    --vary, 0.5 without."""
    rounds: int = 1
    """With a mask: how often each step is repeated, so that what is made fits what is kept (RePaint)."""
    soft: int = 0
    """With a mask: pixels over which its known side fades."""
    vary: float | None = None
    """Instead: a variation, this share of a quarter turn from the picture's own noise at --strength."""
    to: Path | None = None
    """Instead: the way to this picture, in --n pictures, through the noises of both."""
    before: str | None = None
    """With --label: the picture's present label. Its noise stays, and the label becomes the other, in --n pictures."""
    enlarge: int | None = None
    """Instead: the picture is smaller than the run's by this factor, and is made as large as they are."""
    like: Path | None = None
    """With any of these: a picture that the results are to be like (a run of --task represented)."""
    label: str | None = None
    """A class by number or name to follow."""
    guidance: float = 1.0
    """1 follows the label, more exaggerates it."""
    n: int = 8
    """How many results, each by noise of its own."""
    steps: int = 20
    """Calls of the network for each result."""
    seed: int = 0
    index: tuple[int, ...] | None = None
    """Which results of the seed, such as 5, in place of --n; result 5 is the same picture in any company."""
    fit: str | None = None
    """What to do with a picture or mask of another size: crop, pad or stretch."""
    out: Path | None = None
    """The .png to write; by default samples/edit-NAME.png in the run."""
    device: str | None = None
    net: str | None = None
    """The network's own file, for a run trained with --net."""


def main(arguments: list[str]) -> None:
    import torch

    from backdrift.cli.choices import fit
    from backdrift.data import read_mask, read_picture, save_grid
    from backdrift.model import load
    from backdrift.train.networks import FileNet

    options = parse(Edit, "edit", arguments)
    check(options)
    model = load(options.run, options.device, None if options.net is None else FileNet.of(options.net))
    shape = model.event_shape
    if options.enlarge is not None:
        shape = smaller(shape, options.enlarge)
    picture = read_picture(options.image, shape, fit(options.fit, (255, 255, 255)))
    mask = None if options.mask is None else read_mask(options.mask, shape, fit(options.fit, (0, 0, 0)))
    if options.enlarge is not None:
        made = enlarged(options, model, picture)
        picture = picture.repeat_interleave(options.enlarge, 1).repeat_interleave(options.enlarge, 2)
    else:
        with torch.no_grad():
            made = results(options, model, picture, mask)
    shown = [picture] if mask is None else [picture, (2 * mask - 1).expand(shape)]
    out = options.out or options.run / "samples" / f"edit-{options.image.stem}.png"
    save_grid(torch.stack([*shown, *made.cpu()]), out, columns=len(shown) + min(len(made), 8))
    say(f"{len(made)} results beside the picture  {out}")


def check(options: Edit) -> None:
    """Raises `UserError` for choices that exclude each other."""
    if options.n < 1:
        raise UserError(f"Ask for at least one result, not {options.n}.")
    if options.index is not None and (not options.index or min(options.index) < 0):
        raise UserError("--index takes numbers from 0, such as 5.")
    ways = ("mask", "vary", "to", "before", "enlarge")
    chosen = [f"--{name}" for name in ways if getattr(options, name) is not None]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} are different edits; choose one.")
    if options.strength is not None and chosen not in ([], ["--mask"], ["--vary"]):
        raise UserError(f"{chosen[0]} does not use --strength; leave one of them out.")
    if options.mask is None and (options.rounds != 1 or options.soft != 0):
        raise UserError("--rounds and --soft belong to a --mask.")
    if options.like is not None and options.enlarge is not None:
        raise UserError("--enlarge follows the picture alone; leave out --like.")
    if options.before is not None and options.label is None:
        raise UserError("--before is the picture's present label; add --label, the one it is to get.")
    if options.out is not None and options.out.suffix.lower() != ".png":
        raise UserError(f"The sheet is written as PNG; let {options.out} end in .png.")


def results(options: Edit, model, picture, mask):
    """The edited pictures (n, C, H, W)."""
    from backdrift.cli.choices import fit
    from backdrift.cli.hints import likeness
    from backdrift.edit import Masked, Replacement, blend, fill, pictures_of, sdedit, soft_edge, vary

    index = list(range(options.n) if options.index is None else options.index)
    x0 = picture.expand(len(index), *picture.shape).to(next(model.denoiser.parameters()).device)
    labels = model.labels(options.label, len(index))
    cond = {} if labels is None else {"label": labels.to(x0.device)}
    alike = likeness(model, options.like and [options.like], fit(options.fit, (255, 255, 255)))
    cond |= {name: value.expand(len(index), -1) for name, value in alike.items()}
    denoiser = model.guided(options.guidance, cond)
    drawn = {"cond": cond, "seed": options.seed, "index": index}
    strength = options.strength
    if options.vary is not None:
        return vary(denoiser, x0, options.vary, strength=1.0 if strength is None else strength, **drawn)
    if options.to is not None or options.before is not None:
        return way(options, model, denoiser, x0[:1], {name: value[:1] for name, value in cond.items()})
    if mask is None:
        return sdedit(denoiser, x0, 0.5 if strength is None else strength, steps=options.steps, **drawn)
    mask = (soft_edge(mask, options.soft) if options.soft else mask).to(x0.device)
    if {"known", "mask"} <= pictures_of(model.denoiser).keys():
        if options.strength is not None or options.rounds != 1:
            raise UserError("This run was trained to fill pictures in, at full strength in one round: leave both out.")
        return fill(denoiser, x0, mask, steps=options.steps, **drawn)
    solver = Replacement(x0, Masked(mask.expand(picture.shape)), options.rounds)
    strength = 1.0 if strength is None else strength
    return blend(x0, sdedit(denoiser, x0, strength, solver=solver, steps=options.steps, **drawn), mask)


def way(options: Edit, model, denoiser, x0, cond):
    """The pictures (n, C, H, W) from x0 (1, C, H, W) to another picture, or from one label to another."""
    from backdrift.cli.choices import fit
    from backdrift.data import read_picture
    from backdrift.edit import between, between_conditions

    if options.to is not None:
        other = read_picture(options.to, model.event_shape, fit(options.fit, (255, 255, 255))).to(x0)[None]
        return between(denoiser, x0, other, options.n, cond=cond)[:, 0]
    before = {"label": model.labels(options.before, 1).to(x0.device)}
    return between_conditions(denoiser, x0, before, cond, options.n)[:, 0]


def smaller(shape: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    """The shape of pictures that are to be enlarged. Raises `UserError` for a factor that leaves a remainder."""
    channels, height, width = shape
    if factor < 2 or height % factor or width % factor:
        raise UserError(f"Pictures of {width} x {height} pixels cannot come of ones {factor} times smaller.")
    return channels, height // factor, width // factor


def enlarged(options: Edit, model, small):
    """Pictures (n, C, H, W) whose averages over squares of pixels are `small` (C, h, w), to its rounding."""
    import torch

    from backdrift.guide import Composed
    from backdrift.inverse import Downsample, PiGDM
    from backdrift.noise import Noise

    measurement = Downsample(options.enlarge, model.event_shape, NOISE)
    denoiser, index = model.denoiser, torch.arange(options.n) if options.index is None else torch.tensor(options.index)
    if options.label is not None:
        label = {"label": model.labels(options.label, 1)}
        denoiser = Composed(denoiser, [(label, options.guidance)])
    small = small.to(next(model.denoiser.parameters()).device)
    noise = Noise(options.seed, index)
    made = PiGDM()(denoiser, measurement, small, len(index), steps=options.steps, noise=noise)
    return made + measurement.pinv(small - measurement.forward(made))
