"""Directions of variation on scenes of one thing: does one attribute follow, and do the others stay?

    python bench/directions.py --run runs/one-thing > directions.json
    python bench/directions.py --run runs/more --from runs/one-thing > directions.json     # 600 steps more

Trains, in the folder `--run`, an encoder that knows where things are (`views_for(placed=True)`) and a U-Net that is
told its representations, on 20,000 scenes of one thing whose shape, colour, size and place are independent, at half
their size (12 x 12; places are even, so that shapes stay whole). A second call measures only.

Then, for x and y (columns and rows), size and the three colour channels: the direction in which the representation
follows the attribute with the others held (`effects`), and `--n` held-out pictures taken along it, the same noise at
every step. Attributes are read from the light of a picture, its largest channel where that is above a quarter: its
centre, the root of its amount, and the share of it that each channel has. "moves" is the mean change from one end of
the walk to the other and, for the other attributes, their mean absolute change, all in standard deviations of the data;
what each moves by another noise alone is the floor. Path lengths are those of the ways between held-out pictures along
the arc of their representations and by fading one into the other (at half-way).
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
from backdrift.data.scenes import Meaning, Thing, draw, show
from backdrift.data.scenes.words import COLOURS, SIZES
from backdrift.noise import Noise
from backdrift.represent import (
    Contrast,
    EncoderChoice,
    InformedChoice,
    Likeness,
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

SHAPES = ("square", "circle", "triangle")
AMOUNTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # in standard deviations of the attribute
STEPS = 10
NAMES = ("x", "y", "size", "red", "green", "blue")


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


def trained(run: Path, pictures, encoder_steps: int, steps: int, start: Path | None = None) -> None:
    """The encoder and the model, where they are not there yet."""
    base = for_pictures(pictures)
    base = replace(base, validate_every=0, checkpoint_every=50, snapshots=replace(base.snapshots, count=0))
    base = replace(base, precision="bf16")
    choice = EncoderChoice(32)
    contrast = Contrast(64, views=views_for(pictures.shape, placed=True))
    encoding = replace(base, net=choice, objective=contrast, steps=encoder_steps, batch=256, weight_decay=0.01)
    if start is None:
        train(pictures, encoding, run=run / "encoder")
    net = InformedChoice(UNetChoice(width=32, multipliers=(1, 2), blocks=1, attention=(1,)), choice, 64)
    told = replace(base, net=net, derived=(Likeness(dropout=0.1),), steps=steps)
    train(pictures, told, run=run / "pictures", start_from=start / "pictures" if start else run / "encoder")


def attributes(pictures: torch.Tensor) -> torch.Tensor:
    """What the light of pictures (B, 3, H, W) says: column, row, size, red, green, blue; float64 (B, 6)."""
    share = ((pictures.double().cpu() + 1) / 2).clamp(0, 1)
    light = share.amax(1)
    light = light * (light > 0.25)
    whole = light.sum((1, 2)).clamp_min(1e-6)
    columns, rows = (torch.arange(side, dtype=torch.float64) for side in (light.shape[2], light.shape[1]))
    centre = [(light.sum(1) * columns).sum(1) / whole, (light.sum(2) * rows).sum(1) / whole]
    colours = ((share * (light > 0.25)[:, None]).sum((2, 3)) / whole[:, None]).unbind(1)
    return torch.stack([*centre, whole.sqrt(), *colours], 1)


def explained(known, known_attributes, new, new_attributes) -> list[float]:
    """The share of each attribute's variance that a linear reading of the representation explains, on new pictures."""
    design, fresh = (torch.cat([x.double(), torch.ones(len(x), 1)], 1) for x in (known, new))
    read = fresh @ torch.linalg.lstsq(design, known_attributes).solution
    return (1 - (read - new_attributes).square().mean(0) / new_attributes.var(0, correction=0)).tolist()


def followed(model, start, direction, place: int, spread) -> dict:
    """What is read along a direction. place: of the attribute; spread: (6,), the data's standard deviations."""
    made = walk(model, start, direction, AMOUNTS, steps=STEPS)
    read = attributes(made.flatten(0, 1)).view(len(made), len(AMOUNTS), -1) / spread
    curve, moved = read[:, :, place], (read[:, -1] - read[:, 0]).abs().mean(0)
    ends = curve[:, -1] - curve[:, 0]
    steps = curve.diff(dim=1)
    return {
        "n": len(made),
        "mean along the way": (curve.mean(0) - curve.mean()).tolist(),
        "curve is monotone": bool((curve.mean(0).diff() > 0).all()),
        "moves": [float(ends.mean()), 1.96 * float(ends.std()) / len(made) ** 0.5],
        "pictures that end higher": float((ends > 0).double().mean()),
        "steps up": float((steps > 0).double().mean()),
        "others move": {name: float(moved[k]) for k, name in enumerate(NAMES) if k != place},
    }


def by_noise(model, start, spread) -> dict:
    """How much each attribute changes when the noise alone does."""
    first, second = (model.sample(len(start), cond={"representation": start}, steps=STEPS, seed=s) for s in (0, 1))
    moved = ((attributes(first) - attributes(second)).abs() / spread).mean(0)
    return dict(zip(NAMES, moved.tolist(), strict=True))


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument(
        "--from", dest="start", type=Path, help="the folder of an earlier call, whose model is the start"
    )
    parser.add_argument("--encoder-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--sheet", type=Path, help="a .png of one picture along every direction")
    options = parser.parse_args()
    pictures = one_thing(20_000, 0)
    trained(options.run, pictures, options.encoder_steps, options.steps, options.start)
    model = bd.load(options.run / "pictures")
    train_part, held_out = pictures.split()
    known, new = train_part.tensor(range(4000)), held_out.tensor()
    known_attributes, new_attributes = attributes(known), attributes(new)
    told, fresh = (torch.cat([representation_of(model.denoiser, x) for x in y.split(500)]) for y in (known, new))
    shares = explained(told, known_attributes, fresh, new_attributes)
    print(json.dumps({"explained linearly": dict(zip(NAMES, shares, strict=True)), "n": len(new)}), flush=True)
    axes, spread = effects(told, known_attributes), known_attributes.std(0)
    print(json.dumps({"moved by another noise": by_noise(model, fresh[: options.n], spread)}), flush=True)
    rows = []
    for place in (0, 1, 2, 3, 4, 5):
        found = followed(model, fresh[: options.n], axes[place], place, spread)
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
    return found


if __name__ == "__main__":
    main()
