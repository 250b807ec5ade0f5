"""How far inpainting by replacement ends from the exact posterior: on atoms, and on a mixture of two modes.

    python bench/replacement.py [--n 2000] [--seeds 3]

Pairs of numbers of which the first is known. The atoms are eight points with weights, four of which have the known
number; the mixture has four Gaussians, which given the first number leave two modes of unequal weight. The denoiser is
exact, so all error is the method's. Prints JSON: the probability that the samples' modes have at the wrong place (total
variation from the exact weights), mean and range over seeds, and what as many exact draws get (the floor).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics

import torch
from torch import Tensor

import backdrift as bd
from backdrift.edit import Masked, Replacement

PLACES = torch.tensor([-0.9, -0.3, 0.3, 0.9], dtype=torch.float64)
POINTS = torch.cartesian_prod(torch.tensor([-0.8, 0.8], dtype=torch.float64), PLACES)
SHARES = torch.tensor([0.05, 0.25, 0.15, 0.05, 0.05, 0.10, 0.05, 0.30], dtype=torch.float64)
ATOMS = bd.exact.Atoms(POINTS, SHARES)
MEANS = torch.tensor([[-0.8, -0.8], [-0.8, 0.8], [0.8, -0.8], [0.8, 0.8]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.1, 0.15, 0.35], dtype=torch.float64)
STD = 0.25
MIXTURE = bd.exact.Mixture(WEIGHTS, MEANS, torch.tensor(STD**2, dtype=torch.float64))
WAYS = {"replacement": (1, 1), "RePaint 4": (4, 1), "RePaint 16": (16, 1), "RePaint 10, jump 10": (10, 10)}


def atoms() -> tuple[float, Tensor, Tensor]:
    """The known number, the modes' places and their exact weights."""
    share = SHARES[POINTS[:, 0] == 0.8]
    return 0.8, PLACES, share / share.sum()


def mixture() -> tuple[float, Tensor, Tensor]:
    known = 0.3
    share = WEIGHTS * torch.exp(-((known - MEANS[:, 0]) ** 2) / (2 * STD**2))
    lower = float((share[MEANS[:, 1] < 0]).sum() / share.sum())
    return known, torch.tensor([-0.8, 0.8], dtype=torch.float64), torch.tensor([lower, 1 - lower], dtype=torch.float64)


def distance(x: Tensor, places: Tensor, exact: Tensor) -> float:
    """Total variation between the shares of x (n,) that are nearest to each place and the exact ones."""
    nearest = (x[:, None] - places).abs().argmin(1)
    return float((torch.bincount(nearest, minlength=len(places)) / len(x) - exact).abs().sum() / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=(20, 60))
    said = parser.parse_args()
    for name, law, case in (("atoms", ATOMS, atoms), ("two modes", MIXTURE, mixture)):
        known, places, exact = case()
        # of a share p among n, the mean absolute deviation is sqrt(2 p (1 - p) / (pi n))
        floor = float((2 * exact * (1 - exact) / (math.pi * said.n)).sqrt().sum() / 2)
        print(json.dumps({"case": name, "exact": [round(v, 4) for v in exact.tolist()], "floor": round(floor, 4)}))
        denoiser = law.denoiser(bd.process.Gaussian(bd.schedule.VP()))
        picture, mask = torch.tensor([[known, 0.0]]).double(), Masked(torch.tensor([1.0, 0.0]).double())
        for way, (rounds, jump) in WAYS.items():
            for steps in said.steps:
                solver = Replacement(picture, mask, rounds, jump)
                gaps = []
                for seed in range(said.seeds):
                    x = bd.sample(denoiser, shape=(said.n, 2), solver=solver, steps=steps * rounds, seed=seed)
                    gaps.append(distance(x[:, 1].double(), places, exact))
                row = {"way": way, "steps of the grid": steps, "evaluations": steps * rounds}
                row |= {"mean": round(statistics.fmean(gaps), 4), "each": [round(gap, 4) for gap in gaps]}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
