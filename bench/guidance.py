"""Ways of guiding compared at equal agreement: figures of samples by weight, over several seeds.

    python bench/guidance.py runs/digits --weak runs/weak --seeds 5

where runs/weak is smaller and less trained, on the same data (backdrift train --unet.width 16 --steps 150). Prints,
as JSON, for each seed, way and weight, label agreement, Fréchet distance, precision and recall, each with its floor.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from backdrift import data, load
from backdrift.cli.steering import Steering
from backdrift.evaluate import PixelPCA
from backdrift.evaluate.sweep import sweep
from backdrift.run import Run

NAMES = ("label agreement", "FD", "precision", "recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--weak", type=Path)
    parser.add_argument("--interval", type=float, nargs=2, default=(0.3, 2.0))
    parser.add_argument("--weights", type=float, nargs="+", default=(1.0, 1.5, 2.0, 3.0))
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    model = load(arguments.run)
    pictures = data.load(Run(arguments.run).config()["data"]["source"])
    features = PixelPCA.fit(pictures.split()[0].tensor(), 24)
    ways = {"plain": Steering(), "interval": Steering(interval=tuple(arguments.interval))}
    if arguments.weak:
        ways["auto"] = Steering(weak=arguments.weak)
    rows = defaultdict(list)
    for seed in range(arguments.seeds):
        for way, steering in ways.items():
            # weight 1 is the same model in every way
            weights = [w for w in arguments.weights if w != 1 or way == "plain"]
            found = sweep(
                lambda w, steering=steering: steering.around(model, w, ("label",)),
                pictures,
                weights,
                n=arguments.n,
                steps=arguments.steps,
                features=features,
                seed=seed,
            )
            for i, weight in enumerate(weights):
                figures = {name: found.rows(name)[i] for name in NAMES}
                row = {name: (round(figure.value, 4), round(figure.floor, 4)) for name, figure in figures.items()}
                rows[way, weight].append(row)
                print(json.dumps({"seed": seed, "way": way, "weight": weight, **row}), flush=True)
    for (way, weight), each in rows.items():
        means = {
            name: [round(fmean(values), 4) for values in zip(*(row[name] for row in each), strict=True)]
            for name in NAMES
        }
        print(json.dumps({"mean of": len(each), "way": way, "weight": weight, **means}))


if __name__ == "__main__":
    main()
