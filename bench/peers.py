"""Our default sampler and the peers' on the same noises with the same exact denoiser: accuracy per evaluation.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install torch==2.13.0 diffusers==0.42.1 azula==0.11.1 scikit-learn safetensors scipy
    /tmp/peers/bin/pip install --no-deps k-diffusion==0.1.1.post1
    PYTHONPATH=src /tmp/peers/bin/python bench/peers.py --data ring --n 40960

The peers live in an environment of their own and are no dependency of the project. What is measured is the distance of
the output from the probability flow's own end at sigma = 0 from the same noise (Runge-Kutta, 200 steps of 4): median,
root mean square, and the fraction that ends in another mode. Peers get every grid that they offer, and the choice of
the last sigma before 0; each reported peer is the best of them all on the very data that judges it, for each measure
and budget anew, which flatters them (on few noises all of them, on all noises the five best). Ours is one rule.
Prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from peer_rows import Row, azula_rows, diffusers_rows, k_rows
from torch import Tensor

from backdrift.exact import Atoms, Mixture
from backdrift.exact.base import Blurred, Distribution
from backdrift.noise import Noise
from backdrift.process import Gaussian
from backdrift.sample import default_grid, default_solver
from backdrift.sample.tune import tune
from backdrift.schedule import EDM, Flow, Schedule, Tabulated

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
FEW, FINALISTS = 2048, 5  # noises on which all rows are ranked, and how many per measure run on all noises


def cosine() -> Tabulated:
    """The cosine table as diffusers builds it, every beta at most 0.999."""
    bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    betas = [min(1 - b / a, 0.999) for a, b in itertools.pairwise(bar)]
    return Tabulated(tuple(np.cumprod(1 - np.array(betas)).tolist()))


PROCESSES: dict[str, Schedule] = {"vp": Tabulated.linear(), "cosine": cosine(), "edm": EDM(), "flow": Flow()}


class Round(Mixture):
    """A mixture of round Gaussians by matrix products alone: the same answers as `Mixture`, ten times as fast."""

    def at(self, x, alpha, sigma, wanted=None):
        a, s2 = alpha[:, None], self.eigenvalues[:, :1].expand(len(self.means), 1).T
        c = a**2 * s2 + sigma[:, None] ** 2
        gap = x.square().sum(1, keepdim=True) - 2 * a * (x @ self.means.T) + a**2 * self.means.square().sum(1)
        r = (self.log_weights - x.shape[1] / 2 * c.log() - gap / (2 * c)).softmax(1)
        pull = r * a * s2 / c
        mean = (r - a * pull) @ self.means + pull.sum(1, keepdim=True) * x
        return Blurred(torch.full_like(sigma, math.nan), mean, torch.full_like(x, math.nan))


def ring() -> Mixture:
    """8 Gaussians of standard deviation 0.1 on the unit circle, the weight of the k-th proportional to k."""
    k = torch.arange(8, dtype=torch.float64)
    angle = 2 * math.pi * k / 8
    return Round(k + 1, torch.stack([angle.cos(), angle.sin()], 1), 0.01)


def mixture(dimension: int, seed: int) -> Mixture:
    """A random mixture of 4 to 12 Gaussians with random scales."""
    g = torch.Generator().manual_seed(seed)
    count = int(torch.randint(4, 13, (), generator=g))
    scale = 0.3 + 1.2 * torch.rand((), generator=g, dtype=torch.float64)
    means = scale * torch.randn(count, dimension, generator=g, dtype=torch.float64)
    spread = scale * (0.05 + 0.3 * torch.rand(count, generator=g, dtype=torch.float64))
    weights = 0.2 + torch.rand(count, generator=g, dtype=torch.float64)
    return Round(weights, means, spread**2)


def digits() -> Atoms:
    """scikit-learn's digits, 64 pixels in [-1, 1], each smoothed by a standard deviation of 0.1."""
    from sklearn.datasets import load_digits

    return Atoms(torch.from_numpy(load_digits().data / 8 - 1), bandwidth=0.1)


DATA: dict[str, Callable[[], Distribution]] = {
    "ring": ring,
    **{f"mixture-{d}": partial(mixture, d, 1000 + d) for d in (2, 4, 8, 16, 64)},
    "digits": digits,
}


class Problem:
    """One distribution under one process, with its start states, their reference ends, and a counter of evaluations."""

    def __init__(self, distribution: Distribution, schedule: Schedule, n: int, seed: int):
        self.distribution, self.schedule = distribution, schedule
        self.denoiser = distribution.denoiser(Gaussian(schedule))
        like = torch.empty(n, *distribution.event_shape, dtype=torch.float64)
        self.x1 = self.denoiser.process.prior(like, Noise.of(seed, n))
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(1.0))
        self.eps, self.largest = self.x1 / sigma, sigma / alpha if alpha else math.inf
        # the flow to sigma = 0, also where the schedule stops before
        one, zero = torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        self.reference = distribution.flow(self.x1, (one * alpha, one * sigma), (one, zero), None, 200)
        self.modes = self._mode(self.reference)
        self.calls = 0

    def mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        self.calls += 1
        level = [torch.full((len(x),), float(v), dtype=torch.float64) for v in (alpha, sigma)]
        return self.distribution.at(x.double(), *level).mean

    def _mode(self, x: Tensor) -> Tensor:
        d = self.distribution
        centres = d.points.double() if isinstance(d, Atoms) else d.means
        return torch.cdist(x, centres).argmin(1)

    def errors(self, x: Tensor) -> tuple[Tensor, float]:
        error = (x - self.reference).norm(dim=1)
        return error, float((self._mode(x) != self.modes).double().mean())


# ---------------------------------------------------------------------- ours


def ours(p: Problem, n: int) -> Tensor:
    times = default_grid(p.denoiser).times(p.schedule, n)
    with torch.no_grad():
        return default_solver(p.denoiser).plan(p.schedule, times).run(p.denoiser, p.x1)


# ---------------------------------------------------------------------- the comparison


def interval(mine: Tensor, theirs: Tensor, measure: Callable[[Tensor], Tensor], draws: int = 200) -> list[float]:
    """Paired bootstrap over trajectories: 95 % interval of measure(mine) / measure(theirs)."""
    g = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(draws):
        i = torch.randint(len(mine), (len(mine),), generator=g)
        ratios.append(float(measure(mine[i]) / measure(theirs[i])))
    return [round(v, 4) for v in np.quantile(ratios, [0.025, 0.975]).tolist()]


def rms(e: Tensor) -> Tensor:
    return e.square().mean().sqrt()


MEASURES = {"median": torch.median, "rmse": rms}


def attempt(p: Problem, row: Row, budget: int) -> tuple[Tensor, float] | None:
    """The row's errors and switched fraction; None where it fails or takes more evaluations than allowed."""
    p.calls = 0
    try:
        x = row(p, budget)
    except (ValueError, RuntimeError, IndexError, ArithmeticError):
        return None
    return p.errors(x) if p.calls <= budget and bool(torch.isfinite(x).all()) else None


def compare(few: Problem, p: Problem, rows: list[tuple[str, Row]], budget: int) -> dict:
    """Ours and the best peers at one budget: ranked on `few` noises, the first `FINALISTS` of each measure on all."""
    tried = {name: attempt(few, row, budget) for name, row in rows}
    ranked = {name: found[0] for name, found in tried.items() if found is not None}
    finalists = {
        name for f in MEASURES.values() for name in sorted(ranked, key=lambda name: float(f(ranked[name])))[:FINALISTS]
    }
    results = {name: found for name, row in rows if name in finalists and (found := attempt(p, row, budget))}
    mine, switched = p.errors(ours(p, budget))
    out = {"evaluations": budget, "switched": switched, "peers_failed": len(tried) - len(ranked)}
    for measure, f in MEASURES.items():
        name = min(results, key=lambda name: float(f(results[name][0])))
        error, moved = results[name]
        out[measure] = {
            "ours": float(f(mine)),
            "best_peer": float(f(error)),
            "peer": name,
            "peer_switched": moved,
            "ratio": float(f(mine) / f(error)),
            "interval": interval(mine, error, f),
        }
    return out


def tuned_results(p: Problem, budgets: list[int]) -> list[dict]:
    """Plans tuned for this denoiser, on the noises of the comparison, which tuning never saw."""
    out = []
    for budget in budgets:
        began = time.process_time()
        plan = tune(p.denoiser, budget)
        seconds = time.process_time() - began
        with torch.no_grad():
            error, switched = p.errors(plan.run(p.denoiser, p.x1))
        figures = {measure: float(f(error)) for measure, f in MEASURES.items()}
        out.append({"evaluations": budget, **figures, "switched": switched, "cpu_seconds": round(seconds)})
        print("tuned", out[-1], file=sys.stderr, flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="ring", choices=sorted(DATA))
    parser.add_argument("--n", type=int, default=40960)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--processes", nargs="*", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--tuned", nargs="*", type=int, default=[], help="budgets at which to tune a plan")
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    began = time.time()
    distribution = DATA[options.data]()
    table, tuned = {}, {}
    for name in options.processes:
        problem = Problem(distribution, PROCESSES[name], options.n, options.seed)
        few = Problem(distribution, PROCESSES[name], min(options.n // 4, FEW), options.seed)
        rows = [*diffusers_rows(name), *azula_rows(), *k_rows()]
        table[name] = [compare(few, problem, rows, budget) for budget in options.budgets]
        tuned[name] = tuned_results(problem, options.tuned)
        for line in table[name]:
            words = [f"{m} {line[m]['ours']:.2g} against {line[m]['best_peer']:.2g}" for m in MEASURES]
            print(name, line["evaluations"], *words, file=sys.stderr, flush=True)
    ratios = {m: [line[m]["ratio"] for lines in table.values() for line in lines] for m in MEASURES}
    print(
        json.dumps(
            {
                "data": options.data,
                "n": options.n,
                "seed": options.seed,
                "peer_rows": len(rows),
                "geometric_mean_ratio": {m: math.exp(float(np.mean(np.log(r)))) for m, r in ratios.items() if r},
                "seconds": round(time.time() - began),
                "processes": table,
                "tuned": tuned,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
