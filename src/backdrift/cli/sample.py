"""`backdrift sample`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from backdrift.cli.parse import parse, say
from backdrift.cli.steering import Steering
from backdrift.errors import UserError

_NOT_WRITTEN = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy", ".npz", ".zip")


@dataclass(frozen=True)
class Sample:
    """Draw samples from a run: a grid as one PNG, or every sample as a file of its own in a folder."""

    run: Positional[Path]
    """The run folder, or a folder that diffusers wrote."""
    n: int = 36
    """How many samples."""
    label: tuple[str, ...] | None = None
    """A class by number or name, or several that are repeated in turn; left out, unconditional."""
    text: tuple[str, ...] | None = None
    """What to show, in quotes, such as "a red heart", or several texts that are repeated in turn."""
    guidance: float = 1.0
    """1 follows label and text, more exaggerates them."""
    cond: Path | None = None
    """A .npz of further conditions by name, such as tokens (n, M, width), whose rows are repeated in turn."""
    control: tuple[Path, ...] | None = None
    """Pictures whose edges or regions are followed, repeated in turn (a run of --task control)."""
    hint: tuple[Path, ...] | None = None
    """Such edges (white on black) or regions (grey levels) themselves, drawn, repeated in turn."""
    fit: str | None = None
    """What to do with a control picture of another size: crop, pad or stretch."""
    adapter: Path | None = None
    """The run of an adapter that was trained for this run (--task adapter)."""
    strength: float | None = None
    """Of the adapter: 0 is the run without it, 1 (the default) what was trained."""
    like: tuple[Path, ...] | None = None
    """Pictures that the samples are to be like, repeated in turn (a run of --task represented)."""
    prior: Path | None = None
    """The run of a prior (--task prior), which draws for each sample the representation that it is to have."""
    steps: int = 20
    """Calls of the network."""
    solver: str | None = None
    """ddim, ddpm, euler, heun, dpmpp1, dpmpp2, dpmpp3, bridge, ..."""
    grid: str | None = None
    """Where the steps lie: datascaled, logsnr, karras, angle, uniform, quadratic, trailing, ..."""
    plan: Path | None = None
    """A saved plan, in place of solver, grid and steps."""
    seed: int = 0
    index: tuple[int, ...] | None = None
    """Which samples of the seed, such as 7 or 3 5 8; sample 7 is the same picture in any batch."""
    out: Path | None = None
    """A .png for a grid, or a folder for one file per sample (continued where it stopped)."""
    batch: int = 256
    """Samples at once."""
    device: str | None = None
    net: str | None = None
    """The network's own file, for a run trained with --net."""
    steer: OmitArgPrefixes[Steering] = field(default_factory=Steering)


def main(arguments: list[str]) -> None:
    options = parse(Sample, "sample", arguments)
    if options.n < 1:
        raise UserError(f"Ask for at least one sample, not {options.n}.")
    if options.plan is not None and (options.solver or options.grid):
        raise UserError("Give either a plan or a solver and grid: a plan already contains both.")
    if options.like is not None and options.prior is not None:
        raise UserError("--like says what the samples are to show and --prior draws it; give one of them.")
    if options.strength is not None and options.adapter is None:
        raise UserError("--strength is of an --adapter.")
    for name in ("label", "text", "index", "control", "hint", "like"):
        if getattr(options, name) == ():
            raise UserError(f"--{name} needs a value.")
    index = list(range(options.n) if options.index is None else options.index)
    out = options.out or options.run / "samples" / f"seed-{options.seed}.png"
    as_grid = out.suffix.lower() == ".png"
    if not as_grid and (out.is_file() or out.suffix.lower() in _NOT_WRITTEN):
        raise UserError(f"{out} is neither a .png, for a grid, nor a folder.")
    options = with_tuned_plan(options)
    draw = sampler(options)
    if as_grid:
        from backdrift.data import save_grid

        save_grid(draw(index), out)
        say(f"{len(index)} samples  {out}")
    else:
        to_folder(draw, index, out, options)


def with_tuned_plan(options: Sample) -> Sample:
    """The options with the run's tuned plan for these steps and this guidance, if there is one and no other choice."""
    from backdrift.run import Run

    path = Run(options.run).tuned_plan(options.steps, options.guidance)
    if options.plan or options.solver or options.grid or options.steer.typed() or not path.exists():
        return options
    say(f"using the tuned plan  {path}")
    return replace(options, plan=path)


def sampler(options: Sample):
    """A function from sample numbers to pictures."""
    from backdrift.adapter import adapt
    from backdrift.cli.choices import fit, grid, solver
    from backdrift.cli.hints import hints, likeness
    from backdrift.model import load
    from backdrift.sample.plan import Plan
    from backdrift.train.networks import FileNet

    plan = None if options.plan is None else Plan.load(options.plan)
    chosen, places = solver(options.solver), grid(options.grid)
    model = load(options.run, options.device, None if options.net is None else FileNet.of(options.net))
    if options.adapter is not None:
        model = adapt(model, options.adapter, 1.0 if options.strength is None else options.strength)
    pictured = hints(model, options.control, options.hint, fit(options.fit, (255, 255, 255)))
    cond = read_conditions(options.cond)
    texts, guidance = options.text, options.guidance
    if options.steer.typed():
        options.steer.check(guidance)
        named = {"label": options.label, "text": texts, **cond}
        model = options.steer.around(model, guidance, tuple(name for name, value in named.items() if value is not None))
        guidance = 1.0
    labels = model.labels(list(options.label), len(options.label)) if options.label else None
    model.texts(texts, len(texts or ()))  # refused before the first sample, not in the middle
    cond |= pictured | likeness(model, options.like, fit(options.fit, (255, 255, 255)))
    prior = None if options.prior is None else load(options.prior, options.device)

    def represented(index: list[int], label: list[int] | None) -> dict:
        from backdrift.represent import representations

        if prior is None:
            return {}
        return {"representation": representations(prior, model, index, label=label, seed=options.seed)}

    def draw(index: list[int]):
        # a sample's label and text go by its number, so that they do not depend on which others are drawn
        label = None if labels is None else [int(labels[i % len(labels)]) for i in index]
        return model.sample(
            index=index,
            label=label,
            text=None if texts is None else [texts[i % len(texts)] for i in index],
            cond={name: value[[i % len(value) for i in index]] for name, value in cond.items()}
            | represented(index, label),
            guidance=guidance,
            steps=options.steps,
            solver=chosen,
            grid=places,
            plan=plan,
            seed=options.seed,
            batch=options.batch,
        )

    return draw


def read_conditions(path: Path | None) -> dict:
    """The arrays of a .npz as tensors by name, all of as many rows; {} for None. Raises `UserError` otherwise."""
    import numpy as np
    import torch

    if path is None:
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: torch.from_numpy(np.atleast_1d(file[name])) for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is no .npz of arrays by name, as numpy.savez writes it.") from error
    if not found or len({len(value) for value in found.values()}) != 1 or not len(next(iter(found.values()))):
        raise UserError(f"The arrays in {path} must be conditions of as many rows each, at least one.")
    return found


def recipe_of(options: Sample) -> dict[str, str]:
    """What decides the pictures, which must be the same when a folder is continued; files by what is in them."""
    names = ("label", "text", "guidance", "steps", "solver", "grid", "fit", "strength", "seed")
    recipe = {name: str(getattr(options, name)) for name in names}
    own = options.run / "model.safetensors"
    weights = [own] if own.exists() else sorted(options.run.rglob("*.safetensors"))
    adapter = options.adapter and options.adapter / "model.safetensors"
    given = {"plan": [options.plan], "cond": [options.cond], "adapter": [adapter]}
    given |= {"control": options.control or (), "hint": options.hint or ()}
    given["like"] = options.like or ()
    given["prior"] = [options.prior and options.prior / "model.safetensors"]
    given |= {name: [run and run / "model.safetensors"] for name, run in options.steer.runs().items()}
    recipe |= {name: str(value) for name, value in options.steer.shapes().items()}
    for name, files in {"model": weights, **given}.items():
        content = hashlib.sha256()
        for file in files:
            content.update(file.read_bytes() if file else b"")
        recipe[name] = content.hexdigest()[:16] if any(files) else "None"
    return recipe


def to_folder(draw, index: list[int], folder: Path, options: Sample) -> None:
    """One file per sample; samples that are there already, made with the same options, are not made again."""
    from backdrift.data import save_pictures, saved_numbers
    from backdrift.files import write_json
    from backdrift.progress import counting_bar

    note, recipe = folder / "samples.json", recipe_of(options)
    there = saved_numbers(folder)
    if not note.exists() and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no samples of this kind; give another folder.")
    if there:
        before = json.loads(note.read_text(encoding="utf-8"))
        for name, value in recipe.items():
            if before.get(name, "None") != value:  # older folders were made with fewer choices
                raise UserError(
                    f"{folder} holds samples made with {name} {before.get(name)}, not {value}; give another folder."
                )
    write_json(note, recipe)
    todo = [i for i in index if i not in there]
    with counting_bar("sampling") as bar:
        bar(len(index) - len(todo), len(index))
        for low in range(0, len(todo), options.batch):
            part = todo[low : low + options.batch]
            for i, x in zip(part, draw(part), strict=True):
                save_pictures(x[None], folder, start=i)
            bar(len(index) - len(todo) + low + len(part), len(index))
    say(f"{len(todo)} samples made, {len(index) - len(todo)} were there  {folder}")
