"""Directions of variation on scenes of one thing: does one attribute follow, and do the others stay?

    python bench/directions.py --run runs/one-thing > directions.json

Trains, in the folder `--run`, an encoder that knows where things are (`views_for(placed=True)`) and a U-Net that is
told its representations, on 20,000 scenes of one thing whose shape, colour, size and place are independent, at half
their size (12 x 12; places are even, so that shapes stay whole). A second call measures only.

Then, for x and y (columns and rows), size and the three colour channels: the direction in which the representation
follows the attribute with the others held (`effects`), and `--n` held-out pictures taken along it, the same noise at
every step. The checker of `bd.data.scenes` reads the attributes of every sample: means and steps are over pictures
that it recognises at every amount; "stays" is the share of the samples whose other attributes are those at amount 0 (a
place: within a pixel, two of the whole size). Path lengths are those of the ways between held-out pictures along the
arc of their representations and by fading one into the other (at half-way).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import backdrift as bd
from backdrift.data import save_grid
from backdrift.data.scenes import Meaning, Thing, draw, see, show
from backdrift.data.scenes.words import COLOURS, SIZES
from backdrift.noise import Noise
from backdrift.represent import (
    Contrast,
    EncoderChoice,
    InformedChoice,
    Likeness,
    arc,
    effects,
    path_length,
    representation_of,
    squared_in,
    views_for,
    walk,
)
from backdrift.train.loop import train
from backdrift.train.networks import UNetChoice
from backdrift.train.options import for_pictures

SHAPES = ("square", "circle", "triangle")  # a large cross at half size is none that the checker knows
AMOUNTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # in standard deviations of the attribute
STEPS = 10
NAMES = ("x", "y", "size", "red", "green", "blue", *SHAPES[1:])


def one_thing(count: int, seed: int) -> bd.data.Pictures:
    """Scenes of one thing, every attribute drawn by itself."""
    u = Noise.of(seed, count).at("one thing").uniform(torch.zeros(count, 3, dtype=torch.float64)).tolist()
    words = [
        tuple(tuple(names)[int(v * len(names))] for names, v in zip((SHAPES, COLOURS, SIZES), row, strict=True))
        for row in u
    ]
    placed = show([Meaning(Thing(*word)) for word in words], seed, range(count))
    even = [(replace(one, x=one.x - one.x % 2, y=one.y - one.y % 2),) for (one,) in placed]
    whole = torch.from_numpy(np.stack([draw(one) for one in even]))
    pixels = F.avg_pool2d(whole.float(), 2).round().to(torch.uint8)
    source = {"kind": "one thing", "count": count, "seed": seed}
    return bd.data.Pictures(pixels, None, (), [str(i) for i in range(count)], source, validation=0.05)


def seen(pictures: torch.Tensor) -> list:
    """What the checker sees, at the size that it knows; None where it is not one thing."""
    found = see(F.interpolate(pictures.cpu(), scale_factor=2))
    return [things if things is not None and len(things) == 1 else None for things in found]


def trained(run: Path, pictures, encoder_steps: int, steps: int) -> None:
    """The encoder and the model, where they are not there yet."""
    base = for_pictures(pictures)
    base = replace(base, validate_every=0, checkpoint_every=50, snapshots=replace(base.snapshots, count=0))
    base = replace(base, precision="bf16")
    choice = EncoderChoice(32)
    contrast = Contrast(64, views=views_for(pictures.shape, placed=True))
    encoding = replace(base, net=choice, objective=contrast, steps=encoder_steps, batch=256, weight_decay=0.01)
    train(pictures, encoding, run=run / "encoder")
    net = InformedChoice(UNetChoice(width=32, multipliers=(1, 2), blocks=1, attention=(1,)), choice, 64)
    told = replace(base, net=net, derived=(Likeness(dropout=0.1),), steps=steps)
    train(pictures, told, run=run / "pictures", start_from=run / "encoder")


def attributes(things) -> torch.Tensor:
    """Of scenes of one thing (B,): column, row, size (0 small, 1 large), red, green, blue, and two of the shapes."""
    rows = []
    for (one,) in things:
        shapes = [float(one.shape == shape) for shape in SHAPES[1:]]
        rows.append([*one.centre, float(one.size == "large"), *map(float, COLOURS[one.colour]), *shapes])
    return torch.tensor(rows, dtype=torch.float64)


def explained(known, known_attributes, new, new_attributes) -> list[float]:
    """The share of each attribute's variance that a linear reading of the representation explains, on new pictures."""
    design, fresh = (torch.cat([x.double(), torch.ones(len(x), 1)], 1) for x in (known, new))
    read = fresh @ torch.linalg.lstsq(design, known_attributes).solution
    return (1 - (read - new_attributes).square().mean(0) / new_attributes.var(0, correction=0)).tolist()


def followed(model, start, direction, place: int, spread: float) -> dict:
    """What the checker reads along a direction. place: of the attribute; spread: its standard deviation."""
    found = [seen(row) for row in walk(model, start, direction, AMOUNTS, steps=STEPS)]
    middle = len(AMOUNTS) // 2
    whole = [row for row in found if None not in row]
    share = sum(one is not None for row in found for one in row) / (len(found) * len(AMOUNTS))
    result = {"n": len(found), "recognised": share, "recognised at every amount": len(whole)}
    if len(whole) < 2:
        return result
    read = torch.stack([attributes(row) for row in whole])  # (pictures, amounts, attributes)
    moved = read - read[:, middle : middle + 1]
    groups = {"place": (0, 1), "size": (2,), "colour": (3, 4, 5), "shape": (6, 7)}
    stays = {name: [k for k in members if k != place] for name, members in groups.items()}
    curve = read[:, :, place].mean(0)
    steps = moved[:, :, place].diff(dim=1)
    result |= {
        "mean along the way": curve.tolist(),
        "half-width of its 95 % interval": (1.96 * read[:, :, place].std(0) / len(read) ** 0.5).tolist(),
        "asked for": [amount * spread for amount in AMOUNTS],
        "steps that do not go back": float((steps >= 0).double().mean()),
        "curve is monotone": bool((curve.diff() >= 0).all()),
    }
    for name, members in stays.items():
        if members:
            still = moved[:, :, members].abs().amax(2)
            result[f"{name} stays"] = float((still <= (2.0 if name == "place" else 0.0)).double().mean())
    return result


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--encoder-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--sheet", type=Path, help="a .png of one picture along every direction")
    options = parser.parse_args()
    pictures = one_thing(20_000, 0)
    trained(options.run, pictures, options.encoder_steps, options.steps)
    model = bd.load(options.run / "pictures")
    train_part, held_out = pictures.split()
    known, new = train_part.tensor(range(4000)), held_out.tensor()
    known_attributes, new_attributes = attributes(seen(known)), attributes(seen(new))
    told, fresh = (torch.cat([representation_of(model.denoiser, x) for x in y.split(500)]) for y in (known, new))
    shares = explained(told, known_attributes, fresh, new_attributes)
    print(json.dumps({"explained linearly": dict(zip(NAMES, shares, strict=True)), "n": len(new)}), flush=True)
    axes, spread = effects(told, known_attributes), known_attributes.std(0)
    rows = []
    for place in (0, 1, 2, 3, 4, 5):
        found = followed(model, fresh[: options.n], axes[place], place, float(spread[place]))
        print(json.dumps({"direction": NAMES[place], **found}), flush=True)
        rows.append(walk(model, fresh[:1], axes[place], AMOUNTS, steps=STEPS)[0])
    if options.sheet:
        save_grid(torch.cat(rows), options.sheet, columns=len(AMOUNTS))
    print(json.dumps(ways(model, new, fresh)), flush=True)


@torch.no_grad()
def ways(model, pictures, representations) -> dict:
    """The way between held-out pictures: through their representations, and by fading one into the other."""
    count = min(64, len(pictures) // 2)
    first, second = representations[:count], representations[count : 2 * count]
    a, b = pictures[:count], pictures[count : 2 * count]

    def make(told):
        return model.sample(count, cond={"representation": told}, steps=STEPS)

    spaces = {
        "encoder": squared_in(lambda x: representation_of(model.denoiser, x)),
        "pixels": squared_in(lambda x: x.flatten(1)),
    }
    share = 0.5 * torch.ones(count, 1, 1, 1)
    found = {"pairs": count}
    for space, distance in spaces.items():
        values = {
            "representation": path_length(make, first, second, distance),
            "fade": distance(a.lerp(b, share), a.lerp(b, share + 0.02)) / 0.02**2,
        }
        for way, lengths in values.items():
            half = 1.96 * float(lengths.std()) / count**0.5
            found[f"path length in {space}, {way}"] = [float(lengths.mean()), half]
    for way, half_way in (("representation", make(arc(first, second, 0.5))), ("fade", a.lerp(b, share))):
        found[f"half-way is one recognised thing, {way}"] = sum(one is not None for one in seen(half_way)) / count
    return found


if __name__ == "__main__":
    main()
