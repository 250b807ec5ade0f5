"""Learned reverse variances against DDPM's two fixed ones, in bits per dimension at few steps.

    python bench/variances.py RUN [RUN ...] [--steps 50] [--draws 2]

Each RUN was trained with `backdrift train --learned-variance`. The fixed variances (small, large, and half way between
in log) are put into the same network, so that means are equal and a difference is the variances' alone; for a network
trained without, see `backdrift score RUN --method steps --labels --fraction 1`. The bound is that of a model of so many
steps uniform in t, with the discretised decoder from sigma / alpha = 2/255 on, of the run's held-out pictures given
their labels. Differences are paired by picture. Prints JSON.
"""

import argparse
import json
import statistics

import torch

import backdrift as bd
from backdrift.denoiser import Denoiser
from backdrift.likelihood import BySteps, score
from backdrift.posterior import TensorPosterior
from backdrift.run import Run

FIXED = {"small": 0.0, "half way": 0.5, "large": 1.0}


class Means(Denoiser):
    """The means of a denoiser, without its variances."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser, self.process, self.event_shape = denoiser, denoiser.process, denoiser.event_shape
        self.sigma_data = denoiser.sigma_data

    def forward(self, xt, t, cond=None):
        return TensorPosterior(self.denoiser(xt, t, cond).mean)


def compare(model: bd.Model, x: torch.Tensor, cond: dict | None, steps: int, draws: int) -> dict:
    """Bits per dimension of each choice, and what the learned variances save against each."""
    learned = score(model.denoiser, x, BySteps(steps, draws=draws), cond=cond, batch=256)
    means = Means(model.denoiser)
    out = {"learned": learned.bits, "error": learned.error}
    for name, fraction in FIXED.items():
        fixed = score(means, x, BySteps(steps, fraction, draws), cond=cond, batch=256)
        gaps = [a - b for a, b in zip(fixed.pictures, learned.pictures, strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        out[name] = {"bits": fixed.bits, "saved": statistics.mean(gaps), "error": error}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--steps", type=int, nargs="+", default=[50])
    parser.add_argument("--draws", type=int, default=2)
    options = parser.parse_args()
    out = []
    for folder in options.runs:
        model = bd.load(folder)
        if not model.denoiser.learned_variance:
            raise SystemExit(f"{folder} has learned no variances; train it with --learned-variance.")
        _, pictures = bd.data.load(Run(folder).config()["data"]["source"]).split()
        for steps in options.steps:
            found = compare(model, pictures.tensor(), pictures.cond() or None, steps, options.draws)
            out.append({"run": folder, "n": len(pictures), "steps": steps, **found})
            print(json.dumps(out[-1]), flush=True)


if __name__ == "__main__":
    main()
