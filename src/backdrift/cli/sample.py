"""`backdrift sample`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
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
    guidance: float = 1.0
    """1 follows the label, more exaggerates it."""
    cond: Path | None = None
    """A .npz of further conditions by name, such as tokens (n, M, width), whose rows are repeated in turn."""
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


def main(arguments: list[str]) -> None:
    options = parse(Sample, "sample", arguments)
    if options.n < 1:
        raise UserError(f"Ask for at least one sample, not {options.n}.")
    if options.plan is not None and (options.solver or options.grid):
        raise UserError("Give either a plan or a solver and grid: a plan already contains both.")
    if () in (options.label, options.index):
        raise UserError(f"--{'label' if options.label == () else 'index'} needs a value.")
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
    if options.plan or options.solver or options.grid or not path.exists():
        return options
    say(f"using the tuned plan  {path}")
    return replace(options, plan=path)


def sampler(options: Sample):
    """A function from sample numbers to pictures."""
    from backdrift.cli.choices import grid, solver
    from backdrift.model import load
    from backdrift.sample.plan import Plan
    from backdrift.train.networks import FileNet

    plan = None if options.plan is None else Plan.load(options.plan)
    chosen, places = solver(options.solver), grid(options.grid)
    model = load(options.run, options.device, None if options.net is None else FileNet.of(options.net))
    labels = model.labels(list(options.label), len(options.label)) if options.label else None
    cond = read_conditions(options.cond)

    def draw(index: list[int]):
        # a sample's label goes by its number, so that it does not depend on which others are drawn
        label = None if labels is None else [int(labels[i % len(labels)]) for i in index]
        return model.sample(
            index=index,
            label=label,
            cond={name: value[[i % len(value) for i in index]] for name, value in cond.items()},
            guidance=options.guidance,
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
    names = ("label", "guidance", "steps", "solver", "grid", "seed")
    recipe = {name: str(getattr(options, name)) for name in names}
    own = options.run / "model.safetensors"
    weights = [own] if own.exists() else sorted(options.run.rglob("*.safetensors"))
    for name, files in (("model", weights), ("plan", [options.plan]), ("cond", [options.cond])):
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
            if before.get(name) != value:
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
