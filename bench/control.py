"""How well controlled samples follow edges and regions of held-out pictures, over several seeds of the samples.

    python bench/control.py RUN [RUN ...] [--seeds 3] [--count 512]

Each RUN was trained with `backdrift train --task control`. The condition is taken from held-out pictures, and from the
samples again: F1 of edges, mean intersection over union of regions. Beside it two floors: samples of the base alone,
and other real pictures. Intervals are over the held-out pictures, each figure being a picture's mean over the seeds'
rows. Also checked: the base's weights in the run equal those of the run that it stands on, bit for bit, where that is
still there. Prints JSON.
"""

import argparse
import json
import statistics
from pathlib import Path

import backdrift as bd
from backdrift.data import load
from backdrift.report.control import STEPS, follow
from backdrift.run import Run
from backdrift.train.onto import weights_of


def untouched(run: Run) -> bool | None:
    """Whether the run holds the weights of its base as they are, or None where that is gone."""
    base = Path(run.config()["start_from"])
    if not (base / "model.safetensors").exists():
        return None
    kept = weights_of(run.folder)
    return all(value.equal(kept[f"base.{name}"]) for name, value in weights_of(base).items())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=512)
    said = parser.parse_args()
    rows = []
    for folder in said.runs:
        run, model = Run(folder), bd.load(folder)
        pictures, derived = load(run.config()["data"]["source"]), run.options().derived
        found = [follow(model.denoiser, derived, pictures, said.count, seed) for seed in range(said.seeds)]
        for each in zip(*found, strict=True):
            row = {"run": folder.name, "measure": each[0]["measure"], "n": each[0]["n"], "seeds": said.seeds}
            for name in ("value", "without", "others"):
                row[name] = round(statistics.fmean(one[name][0] for one in each), 3)
                row[f"{name} half interval"] = round(max(one[name][1] for one in each), 3)
            rows.append({**row, "evaluations": STEPS, "base untouched": untouched(run)})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
