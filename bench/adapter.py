"""Where an adapter moves a model's samples, by strength: the share that shows one label, and whether it copies.

    python bench/adapter.py BASE ADAPTER LABEL [--n 1000] [--seeds 3]

BASE is a run on the digits, ADAPTER one of `backdrift train --task adapter --from BASE` on a few pictures of LABEL.
Samples are drawn without any label; a classifier fitted on the digits (`evaluate.label_agreement`) says what they show.
Copying: the median distance of samples to the nearest picture that the adapter was trained on, over that of real
pictures of the label that it was not trained on (`evaluate.memorisation`); below .9 is memorised. Prints JSON.
"""

import argparse
import json
from pathlib import Path

import torch

import backdrift as bd
from backdrift.data import digits, load
from backdrift.evaluate import label_agreement, memorisation
from backdrift.run import Run

STRENGTHS = (0.0, 0.5, 1.0, 1.5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("label", type=int)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    said = parser.parse_args()
    train, held_out = digits().split()
    few = load(Run(said.adapter).config()["data"]["source"]).split()[0].tensor()
    fresh = held_out.tensor()[held_out.labels == said.label]
    rows, base = [], bd.load(said.base)
    for strength in STRENGTHS:
        model = bd.adapt(base, said.adapter, strength)
        sets = [model.sample(said.n, steps=15, seed=seed) for seed in range(said.seeds)]
        made = torch.cat(sets)
        asked = torch.full((len(made),), said.label)
        shown = label_agreement(made, asked, train.tensor(), train.labels, held_out.tensor(), held_out.labels).samples
        low, high = shown.interval
        copying = memorisation(made, few, fresh)
        rows.append(
            {
                "strength": strength,
                "share": round(shown.value, 3),
                "interval": [round(low, 3), round(high, 3)],
                "n": shown.n,
                "distance ratio": round(copying.ratio, 3),
                "ratio interval": [round(copying.low, 3), round(copying.high, 3)],
            }
        )
    sizes = [round((folder / "model.safetensors").stat().st_size / 1e6, 2) for folder in (said.base, said.adapter)]
    print(json.dumps({"megabytes of base and adapter": sizes, "pictures": len(few), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
