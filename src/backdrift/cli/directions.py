"""`backdrift directions`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError

FOUND_IN = 5000  # training pictures in whose representations directions are looked for
PAIRS = 64  # ways between held-out pictures, for the path length


@dataclass(frozen=True)
class DirectionsOptions:
    """Show what varies in a run's pictures: a row for each direction of its representation, a picture for each step.

    For runs of --task represented. With --to, the way from one picture to another.
    """

    run: Positional[Path]
    """The run folder."""
    image: Path | None = None
    """The picture from which every row starts; by default the first that was held out."""
    to: Path | None = None
    """Instead of directions: the way from --image to this picture, through their representations."""
    n: int = 6
    """How many directions, or pictures on the way."""
    reach: float = 2.0
    """How far to either side, in the data's standard deviations along each direction."""
    columns: int = 7
    """Pictures in a row."""
    steps: int = 20
    """Calls of the network for each picture."""
    seed: int = 0
    fit: str | None = None
    """What to do with a picture of another size: crop, pad or stretch."""
    out: Path | None = None
    """The .png to write; by default samples/directions.png in the run."""
    device: str | None = None


def main(arguments: list[str]) -> None:
    import torch

    from backdrift import data
    from backdrift.cli.choices import fit
    from backdrift.data import read_picture, save_grid
    from backdrift.model import load
    from backdrift.represent import arc, informed, principal, representation_of, walk
    from backdrift.run import Run

    options = parse(DirectionsOptions, "directions", arguments)
    if options.columns < 2 or options.n < 1 or not options.reach > 0:
        raise UserError("A sheet has at least two columns and one row, and a reach above 0.")
    if options.to is not None and options.image is None:
        raise UserError("--to is where the way ends; add --image, where it starts.")
    if options.out is not None and options.out.suffix.lower() != ".png":
        raise UserError(f"The sheet is written as PNG; let {options.out} end in .png.")
    model = load(options.run, options.device)
    informed(model.denoiser)
    how = fit(options.fit, (255, 255, 255))
    given = [read_picture(path, model.event_shape, how) for path in (options.image, options.to) if path is not None]
    out = options.out or options.run / "samples" / "directions.png"
    if options.to is not None:
        first, second = representation_of(model.denoiser, torch.stack(given)).cpu().split(1)
        shares = torch.linspace(0, 1, options.n, dtype=torch.float64)
        told = arc(first.expand(options.n, -1), second.expand(options.n, -1), shares)
        made = model.sample(
            index=[0] * options.n, cond={"representation": told}, seed=options.seed, steps=options.steps
        )
        save_grid(torch.cat([given[0][None], made.cpu(), given[1][None]]), out, columns=options.n + 2)
        say(f"{options.n} pictures on the way  {out}")
        return
    train, held_out = data.load(Run(options.run).config()["data"]["source"]).split()
    train = train.subset(slice(0, None, -(-len(train) // FOUND_IN)))
    batches = torch.arange(len(train)).split(512)
    known = torch.cat([representation_of(model.denoiser, train.tensor(some)).cpu() for some in batches])
    found = principal(known, options.n)
    start = given[0] if given else held_out.tensor([0])[0]
    told = representation_of(model.denoiser, start[None]).cpu()
    amounts = torch.linspace(-options.reach, options.reach, options.columns).tolist()
    rows = []
    for axis, spread, share in zip(found.axes, found.spread, found.share, strict=True):
        made = walk(model, told, axis * spread, amounts, seed=options.seed, steps=options.steps)[0].cpu()
        rows.append(torch.cat([start[None], made]))
        say(f"direction {len(rows)}: {100 * share:.1f} % of the variance")
    save_grid(torch.cat(rows), out, columns=options.columns + 1)
    lengths = smoothness(model, held_out, options)
    say(f"path length between held-out pictures: {lengths}")
    say(f"{len(rows)} directions from the picture at the left  {out}")


def smoothness(model, held_out, options: DirectionsOptions) -> str:
    """The path length in the encoder's space and in pixels, in words, with 95 % intervals."""
    from backdrift.represent import path_length, representation_of, squared_in

    count = min(PAIRS, len(held_out) // 2)
    if count < 2:
        return "too few held-out pictures to measure"
    told = representation_of(model.denoiser, held_out.tensor(range(2 * count))).cpu()

    def make(representations):
        return model.sample(
            len(representations), cond={"representation": representations}, seed=options.seed, steps=options.steps
        )

    words = []
    spaces = {
        "the encoder's space": lambda x: representation_of(model.denoiser, x),
        "pixels": lambda x: x.flatten(1),
    }
    for name, features in spaces.items():
        values = path_length(make, told[:count], told[count:], squared_in(features), seed=options.seed)
        half = 1.96 * float(values.std()) / count**0.5
        words.append(f"{float(values.mean()):.3g} ± {half:.2g} in {name}")
    return f"{', '.join(words)} (n = {count})"
