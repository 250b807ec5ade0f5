"""Two stages against one, at the same processor time: pictures of a drawn representation, or pictures at once (RCG).

    python bench/representations.py --seeds 0 1 2 > representations.json

On scikit-learn's digits without their labels, on one thread. One stage: a U-Net for `--steps` steps. Two stages: an
encoder, a prior of its representations, and the same U-Net told the representation, for as many steps as leave the sum
of the processor times of all trainings equal; then, not counting the encoder, for as many as prior and U-Net leave; and
for as many as in one stage, where both trainings before come on top. Times per step are measured before. Fréchet
distances of 1,000 samples at 10 evaluations to the training part, in 24 principal components of the pixels; the floor
is that of the held-out part.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import backdrift as bd
from backdrift.evaluate import PixelPCA, frechet, memorisation
from backdrift.evaluate.features import extract
from backdrift.represent import (
    Contrast,
    EncoderChoice,
    InformedChoice,
    Likeness,
    MLPChoice,
    Vectors,
    draw,
    unit,
    views_for,
)
from backdrift.train.loop import train
from backdrift.train.networks import UNetChoice
from backdrift.train.options import for_pictures

SAMPLES = 1000
ENCODER_STEPS, PRIOR_STEPS = 80, 600


def trained(data, options, start=None):
    """(network, processor seconds)."""
    began = time.process_time()
    network = train(data, options, start_from=start).network
    return network, time.process_time() - began


def per_step(data, options, start=None) -> float:
    """Processor seconds of a step, from the difference of two short trainings."""
    short, long = (trained(data, replace(options, steps=steps), start)[1] for steps in (3, 18))
    return (long - short) / 15


def measure(seed: int, steps: int, folder) -> dict:
    pictures = replace(bd.data.digits(), labels=None, classes=())
    part, held_out = pictures.split()
    made = for_pictures(pictures)
    made = replace(made, seed=seed, steps=steps, validate_every=0, snapshots=replace(made.snapshots, count=0))
    made = replace(made, precision="bf16", net=UNetChoice(width=32, multipliers=(1, 2), blocks=1, attention=(1,)))

    contrast = Contrast(32, views=views_for(pictures.shape))
    choice = EncoderChoice(32)
    encoding = replace(made, net=choice, objective=contrast, steps=ENCODER_STEPS, batch=256, weight_decay=0.01)
    began = time.process_time()
    run = folder / f"encoder-{seed}"
    encoder = train(pictures, replace(encoding, checkpoint_every=0), run=run).network
    encoder_time = time.process_time() - began

    vectors = Vectors.of(pictures, lambda x: unit(encoder.net.features(x)), "bench")
    base = for_pictures(vectors)
    prior_options = replace(
        base, seed=seed, steps=PRIOR_STEPS, net=MLPChoice(256, 3), precision="bf16", validate_every=0
    )
    prior_options = replace(prior_options, snapshots=replace(base.snapshots, count=0))
    prior, prior_time = trained(vectors, prior_options)

    told = replace(made, net=InformedChoice(made.net, choice, 32), derived=(Likeness(dropout=0.0),))
    plain_step, told_step = per_step(pictures, made), per_step(pictures, told, run)
    plain, plain_time = trained(pictures, made)
    arms = {"one stage": (bd.Model(plain).sample(SAMPLES, steps=10, seed=seed), plain_time, steps)}
    before = encoder_time + prior_time
    left = {"two stages": before, "two stages, encoder not counted": prior_time}
    fitting = {name: max(10, round((steps * plain_step - spent) / told_step)) for name, spent in left.items()}
    for name, fits in {**fitting, "two stages, as many steps of the U-Net": steps}.items():
        network, own = trained(pictures, replace(told, steps=fits), run)
        samples = draw(bd.Model(prior), bd.Model(network), SAMPLES, steps=10, seed=seed)
        arms[name] = (samples, own + left.get(name, before), fits)
    real, held = part.tensor(), held_out.tensor()
    features = PixelPCA.fit(real)
    found = {"seed": seed, "encoder seconds": encoder_time, "prior seconds": prior_time}
    found |= {"ms per step, one stage": 1e3 * plain_step, "ms per step, told": 1e3 * told_step}
    for name, (x, seconds, count) in {**arms, "floor: held out": (held, 0.0, 0)}.items():
        x = x.clamp(-1, 1)
        row = {"seconds": seconds, "steps of the U-Net": count, "n": len(x)}
        row[f"frechet, {features.name}"] = frechet(extract(features, x), extract(features, real))
        if seconds:
            row["memorisation ratio"] = memorisation(x, real, held).ratio
        found[name] = {key: round(value, 4) for key, value in row.items()}
    return found


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            print(json.dumps(measure(seed, options.steps, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
