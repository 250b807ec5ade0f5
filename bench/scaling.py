"""Does the transformer's loss fall with its size? Several sizes, the same pictures seen, on the digits.

    python bench/scaling.py [--steps 300] [--seeds 0 1] [--threads 1] [--svg docs/pictures/scaling.svg]

Every size trains with the same options (batch 128, the digits' defaults, the transformer's learning rate), so all see
the same pictures in the same order with the same noise. The figure is the averaged network's loss on the held-out
digits, always with the same noise. Prints a line per training and a table; draws mean, smallest and largest over seeds.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import backdrift as bd
from backdrift.nets import parameters_count
from backdrift.report.chart import Axis, Curve, chart, standalone
from backdrift.run import Run
from backdrift.train.networks import DiTChoice
from backdrift.train.options import for_pictures

SIZES = ((64, 2), (64, 4), (128, 4), (192, 4))  # width of a token and number of blocks


def held_out_loss(options, pictures) -> float:
    """The last validation loss of a training."""
    with tempfile.TemporaryDirectory() as folder:
        bd.train(pictures, options, run=folder, progress=False)
        return [r["validation_loss"] for r in Run(Path(folder)).metrics() if "validation_loss" in r][-1]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--svg", type=Path)
    options = options.parse_args()
    torch.set_num_threads(options.threads)

    pictures = bd.data.digits()
    base = for_pictures(pictures)
    base = replace(base, steps=options.steps, lr=base.lr * DiTChoice.pace, validate_every=options.steps)
    losses = {}
    for seed in options.seeds:
        for width, depth in SIZES:
            net = DiTChoice(width=width, depth=depth)
            size = parameters_count(net.build(pictures.shape, len(pictures.classes)))
            loss = held_out_loss(replace(base, net=net, seed=seed), pictures)
            losses.setdefault((width, depth, size), []).append(loss)
            row = {"width": width, "depth": depth, "parameters": size, "seed": seed, "loss": loss}
            print(json.dumps(row), flush=True)
    seen = options.steps * base.batch
    print(f"| transformer, {seen:,} pictures seen | parameters | held-out loss, mean of {len(options.seeds)} | range |")
    print("|---|--:|--:|---|")
    for (width, depth, size), found in losses.items():
        print(f"| {width} x {depth} | {size:,} | {statistics.mean(found):.4f} | {min(found):.4f} to {max(found):.4f} |")
    if options.svg:
        sizes = [size for *_, size in losses]
        curves = [
            Curve(name, sizes, [of(found) for found in losses.values()], dashed)
            for name, of, dashed in (("mean", statistics.mean, False), ("lowest", min, True), ("highest", max, True))
        ]
        title = f"Transformer on the digits after {seen:,} pictures"
        svg = chart(title, curves, Axis("parameters", log=True), Axis("held-out loss"))
        options.svg.write_text(standalone(svg), encoding="utf-8")


if __name__ == "__main__":
    main()
