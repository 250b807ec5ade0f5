"""Samplers on a trained network: the default, tuned plans and the peers' samplers against the network's own fine flow.

    PYTHONPATH=src PEERS/bin/python bench/trained.py RUN --n 64      # the environment of peers.py

What is measured is the root mean square over a picture's pixels of its distance from the end of the network's own
probability flow from the same noise and label: median and root mean square over pictures. The reference is a run of
`--fine` evaluations uniform in the noise angle; `reference_gap` is its distance from one of DPM-Solver++(2M) of as many
uniform in log-SNR, which shares neither solver nor grid with it. Labels go in turn, without guidance. A plan that
`backdrift tune RUN --nfe N` left in the run is compared too, on these noises, which tuning has not seen.

All peers' rows are ranked on the first `--few` noises and the best `FINALISTS` of each measure run on all; the best of
these is reported, for each budget and measure anew, which flatters the peers. One thread. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from peer_rows import Row, azula_rows, diffusers_rows, k_rows
from peers import MEASURES, PROCESSES, interval
from torch import Tensor

import backdrift as bd
from backdrift.denoiser import Denoiser
from backdrift.noise import Noise
from backdrift.sample.default import data_scale, default_grid, default_solver
from backdrift.sample.grids import Angle, DataScaled, LogSNR
from backdrift.sample.ode import DPMpp
from backdrift.sample.plan import Plan
from backdrift.schedule import Cosine

FINALISTS = 3


class Trained:
    """A network with its start noises; the part of peers.py's `Problem` that the peers' rows look at."""

    def __init__(self, denoiser: Denoiser, cond: Mapping | None, x1: Tensor, reference: Tensor):
        self.denoiser, self.cond, self.x1, self.reference = denoiser, cond, x1, reference
        self.own = denoiser.process.schedule
        alpha, sigma = (float(v) for v in self.own.alpha_sigma(1.0))
        self.eps, self.largest = x1.double() / sigma, sigma / alpha if alpha else math.inf
        # some peers know tables only
        self.process, self.schedule = ("cosine", PROCESSES["cosine"]) if self.own == Cosine() else ("", self.own)
        self.calls = 0

    def first(self, count: int) -> Trained:
        cond = None if self.cond is None else {name: value[:count] for name, value in self.cond.items()}
        return Trained(self.denoiser, cond, self.x1[:count], self.reference[:count])

    @torch.no_grad()
    def mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The network's answer at any (alpha, sigma): what it sees depends on sigma / alpha alone."""
        self.calls += 1
        alpha, sigma = float(alpha), float(sigma)
        t = min(max(float(self.own.time(2 * math.log(alpha / sigma))), 0.0), 1.0) if alpha else 1.0
        scale = math.hypot(*map(float, self.own.alpha_sigma(t))) / math.hypot(alpha, sigma)
        return self.denoiser((x * scale).float(), t, self.cond).mean.double()

    def error(self, x: Tensor) -> Tensor:
        """(B,), root mean square over the pixels."""
        return (x - self.reference).flatten(1).double().square().mean(1).sqrt()

    @torch.no_grad()
    def plan_error(self, plan: Plan) -> Tensor:
        return self.error(plan.run(self.denoiser, self.x1, self.cond))


def row_error(p: Trained, row: Row, budget: int) -> Tensor | None:
    """None where the row fails, or takes more evaluations than allowed."""
    p.calls = 0
    try:
        x = row(p, budget)
    except (ValueError, RuntimeError, IndexError, ArithmeticError):
        return None
    return p.error(x) if p.calls <= budget and bool(x.isfinite().all()) else None


def best_peers(p: Trained, rows: list[tuple[str, Row]], budget: int, few: int) -> dict[str, Tensor]:
    """The errors of the finalists on all noises, by name."""
    part = p.first(few)
    ranked = {name: error for name, row in rows if (error := row_error(part, row, budget)) is not None}
    names = {n for f in MEASURES.values() for n in sorted(ranked, key=lambda n: float(f(ranked[n])))[:FINALISTS]}
    return {name: row_error(p, row, budget) for name, row in rows if name in names}


def own_plans(p: Trained, model: bd.Model, budget: int) -> dict[str, Plan]:
    """The default, two of DPM-Solver++, and the run's tuned plan if there is one."""
    scale = data_scale(p.denoiser)
    found = {
        "default": default_solver(p.denoiser).plan(p.own, default_grid(p.denoiser).times(p.own, budget)),
        "2M, uniform log-SNR": DPMpp(2).plan(p.own, LogSNR().times(p.own, budget)),
        "2M, DataScaled": DPMpp(2).plan(p.own, DataScaled(scale).times(p.own, budget)),
    }
    tuned = model.tuned_plan(budget)
    return found if tuned is None else {**found, "tuned": tuned}


def summary(errors: Mapping[str, Tensor], f: Callable[[Tensor], Tensor]) -> dict[str, float]:
    return {name: float(f"{float(f(error)):.3g}") for name, error in errors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--fine", type=int, default=160)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--budgets", nargs="*", type=int, default=[5, 8, 10, 20])
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    began = time.time()

    model = bd.load(options.run, "cpu")
    denoiser, n = model.denoiser, options.n
    cond = {"label": torch.arange(n) % len(model.classes)} if model.classes else None
    x1 = denoiser.process.prior(torch.empty(n, *denoiser.event_shape), Noise.of(options.seed, n))
    schedule, pairs = denoiser.process.schedule, ((default_solver(denoiser), Angle()), (DPMpp(2), LogSNR()))
    with torch.no_grad():
        fine, check = (s.plan(schedule, g.times(schedule, options.fine)).run(denoiser, x1, cond) for s, g in pairs)
    p = Trained(denoiser, cond, x1, fine)
    rows = [*diffusers_rows(p.process), *azula_rows(), *k_rows()]
    table = []
    for budget in options.budgets:
        mine = {name: p.plan_error(plan) for name, plan in own_plans(p, model, budget).items()}
        theirs = best_peers(p, rows, budget, options.few)
        line = {"evaluations": budget}
        for name, f in MEASURES.items():
            best = min(theirs, key=lambda peer: float(f(theirs[peer])))
            line[name] = {**summary(mine, f), "best_peer": float(f"{float(f(theirs[best])):.3g}"), "peer": best}
            line[name]["default_over_peer"] = interval(mine["default"], theirs[best], f)
        table.append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)
    about = {"run": options.run, "n": n, "few": options.few, "peer_rows": len(rows), "seed": options.seed}
    about["reference_gap"] = {name: float(f(p.error(check))) for name, f in MEASURES.items()}
    print(json.dumps({**about, "seconds": round(time.time() - began), "rows": table}, indent=1))


if __name__ == "__main__":
    main()
