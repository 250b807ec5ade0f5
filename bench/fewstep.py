"""All few-step methods on one teacher at equal updates: Fréchet distance, label agreement and cost, failures included.

    python bench/fewstep.py RUN OUT [--updates 300] [--batch 128] [--seeds 0 1 2] [--methods paths maps ...] [--n 1000]

RUN: the teacher's folder; OUT: where the students go. Every method makes the same number of optimiser updates from the
teacher's weights, with its own recommended rate; methods from data alone do so too, and with `--scratch` from untrained
weights. Printed as JSON, for every method and seed: the Fréchet distance of n samples at 1, 2 and 4 evaluations to the
held-out pictures over that of the teacher at 35, the share of samples that a classifier of real pictures sees as what
was asked for, milliseconds of CPU time per picture, and seconds of CPU time of the training. A training that fails says
how. The classifier is a support vector machine on the pixels of the training part.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.svm import SVC

from backdrift import data
from backdrift.cli.choices import few_step, from_data
from backdrift.distillation import Effort, jump_plans, plans, stage_options
from backdrift.errors import UserError
from backdrift.evaluate.distances import frechet
from backdrift.evaluate.features import PixelPCA, extract
from backdrift.model import load
from backdrift.onestep import Watch
from backdrift.run import Run
from backdrift.sample import sample
from backdrift.train.loop import train

METHODS = (
    "paths", "maps", "easy", "discrete", "continuous", "progressive", "rectified", "align", "trajectory", "matching",
)  # fmt: skip
REFERENCE = 35


class Judge:
    """The figures of samples against one set of pictures."""

    def __init__(self, pictures, n: int):
        known, held = pictures.split()
        self.n, self.features = n, PixelPCA.fit(known.tensor(), min(24, known.tensor()[0].numel(), len(known) - 1))
        self.target = extract(self.features, held.tensor())
        self.labels = known.labels[torch.arange(n) % len(known)]
        self.classifier = SVC(C=10).fit(known.tensor().flatten(1).numpy(), known.labels.numpy())

    def __call__(self, network, **how) -> dict:
        began = time.process_time()
        made = sample(network, index=list(range(self.n)), cond={"label": self.labels}, seed=4242, **how)
        cost = time.process_time() - began
        seen = torch.from_numpy(self.classifier.predict(made.flatten(1).numpy()))
        return {
            "fd": frechet(extract(self.features, made), self.target),
            "agreement": float((seen == self.labels).double().mean()),
            "ms": 1000 * cost / self.n,
        }


def student(method, teacher, pictures, effort: Effort, seed: int, steps: int, folder: Path, scratch: bool):
    """The trained network and its plans, stage by stage."""
    start = None if scratch else teacher.folder
    options = replace(Run(teacher.folder).options(), seed=seed)
    for k, stage in enumerate(method.stages(teacher.denoiser.sigma_data, steps)):
        made = stage_options(options, stage, effort)
        watch, run = Watch(pictures, made.steps), folder / str(k)
        trained = train(pictures, made, run=run, start_from=start, on_sample=watch)
        start = run
    network = trained.network.requires_grad_(False)
    found = plans(network, stage.objective, steps, pictures)
    return network, found if found else jump_plans(network, pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *from_data()])
    parser.add_argument("--scratch", action="store_true")
    parser.add_argument("--n", type=int, default=1000)
    options = parser.parse_args()
    teacher = load(options.run)
    pictures = data.load(Run(options.run).config()["data"]["source"])
    judge = Judge(pictures, options.n)
    best = judge(teacher.denoiser, steps=REFERENCE)
    rows = [{"method": "teacher", "evaluations": REFERENCE, "over_teacher": 1.0, **best}]
    effort = Effort(options.updates, options.batch)
    for name in options.methods:
        for seed in options.seeds:
            began, row = time.process_time(), {"method": name, "seed": seed}
            folder = options.out / f"{name}-{seed}"
            try:
                network, found = student(
                    few_step(name), teacher, pictures, effort, seed, 2, folder, options.scratch and name in from_data()
                )
            except UserError as error:
                rows.append({**row, "failed": str(error)})
                continue
            cost = time.process_time() - began
            for count, plan in found.items():
                figures = judge(network, plan=plan)
                rows.append({**row, "evaluations": count, "over_teacher": figures["fd"] / best["fd"], **figures})
                rows[-1]["training_cpu_s"] = cost
            print(json.dumps(rows[-len(found) :]), file=sys.stderr, flush=True)
    print(json.dumps({"updates": options.updates, "batch": options.batch, "n": options.n, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
