"""Directions of variation on scenes of one thing: does one attribute follow, and do the others stay?

    python bench/directions.py --run runs/one-thing > directions.json

Trains, in the folder `--run`, an encoder that knows where things are (`views_for(placed=True)`) and a U-Net that is told
its representations, on 20,000 scenes of one thing whose shape, colour, size and place are independent. A second call
measures only.

Then, for x and y (columns and rows), size and the three colour channels: the direction in which the representation
follows the attribute with the others held (`effects`), and 200 held-out pictures taken along it, same noise for every
step. The checker of `bd.data.scenes` reads the attributes of every sample; a scene that it does not recognise counts
against. Path lengths compare steps between held-out pictures along the arc and in a straight line through pixels.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import backdrift as bd
from backdrift.data.scenes import Meaning, Thing, draw, show
from backdrift.data.scenes.words import COLOURS, SHAPES, SIZES
from backdrift.noise import Noise
from backdrift.represent import Contrast, EncoderChoice, InformedChoice, Likeness, views_for
from backdrift.run import Run
from backdrift.train.loop import train
from backdrift.train.networks import UNetChoice
from backdrift.train.options import for_pictures


def one_thing(count: int, seed: int) -> bd.data.Pictures:
    """Scenes of one thing, every attribute drawn by itself."""
    u = Noise.of(seed, count).at("one thing").uniform(torch.zeros(count, 3, dtype=torch.float64)).tolist()
    words = [tuple(tuple(names)[int(v * len(names))] for names, v in zip((SHAPES, COLOURS, SIZES), row)) for row in u]
    placed = show([Meaning(Thing(*word)) for word in words], seed, range(count))
    pixels = torch.from_numpy(np.stack([draw(one) for one in placed]))
    source = {"kind": "one thing", "count": count, "seed": seed}
    return bd.data.Pictures(pixels, None, (), [str(i) for i in range(count)], source, validation=0.05)


def trained(run: Path, pictures, encoder_steps: int, steps: int) -> None:
    """The encoder and the model, where they are not there yet."""
    base = for_pictures(pictures)
    base = replace(base, validate_every=0, checkpoint_every=200, snapshots=replace(base.snapshots, count=0))
    base = replace(base, precision="fp32")
    choice = EncoderChoice(32)
    contrast = Contrast(64, views=views_for(pictures.shape, placed=True))
    encoding = replace(base, net=choice, objective=contrast, steps=encoder_steps, batch=256, weight_decay=0.01)
    train(pictures, encoding, run=run / "encoder")
    net = InformedChoice(UNetChoice(width=32, multipliers=(1, 2, 2), blocks=1, attention=(2,)), choice, 64)
    told = replace(base, net=net, derived=(Likeness(dropout=0.1),), steps=steps, batch=64)
    train(pictures, told, run=run / "pictures", start_from=run / "encoder")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--encoder-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    pictures = one_thing(20_000, 0)
    trained(options.run, pictures, options.encoder_steps, options.steps)


if __name__ == "__main__":
    main()
