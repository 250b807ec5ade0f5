"""Our default sampler and the peers' on the same noises with the same exact denoiser: accuracy per evaluation.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install torch diffusers azula k-diffusion scikit-learn safetensors scipy tqdm --no-deps ...
    PYTHONPATH=src /tmp/peers/bin/python bench/peers.py --data ring --n 40960

The peers live in an environment of their own and are no dependency of the project. What is measured is the distance of
the output from the probability flow's own end at sigma = 0 from the same noise (Runge-Kutta, 400 steps of 4): median,
root mean square, and the fraction that ends in another mode. Peers get every grid that they offer, and the choice of
the last sigma before 0; each reported peer is the best of them all on the very data that judges it, for each measure
and budget anew, which flatters them (on few noises all of them, on all noises the eight best). Ours is one rule.
Prints JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from backdrift.exact import Atoms, Mixture
from backdrift.exact.base import Distribution
from backdrift.noise import Noise
from backdrift.process import Gaussian
from backdrift.sample import default_grid, default_solver
from backdrift.schedule import EDM, Flow, Schedule, Tabulated

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
LAST = (0.002, 0.01, 0.03, 0.1)  # the last sigma / alpha before 0 that peers may choose from
FEW, FINALISTS = 4096, 8  # noises on which all rows are ranked, and how many per measure run on all noises
Row = Callable[["Problem", int], Tensor]


def cosine() -> Tabulated:
    """The cosine table as diffusers builds it, every beta at most 0.999."""
    bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    betas = [min(1 - b / a, 0.999) for a, b in itertools.pairwise(bar)]
    return Tabulated(tuple(np.cumprod(1 - np.array(betas)).tolist()))


PROCESSES: dict[str, Schedule] = {"vp": Tabulated.linear(), "cosine": cosine(), "edm": EDM(), "flow": Flow()}


def ring() -> Mixture:
    """8 Gaussians of standard deviation 0.1 on the unit circle, the weight of the k-th proportional to k."""
    k = torch.arange(8, dtype=torch.float64)
    angle = 2 * math.pi * k / 8
    return Mixture(k + 1, torch.stack([angle.cos(), angle.sin()], 1), 0.01)


def mixture(dimension: int, seed: int) -> Mixture:
    """A random mixture of 4 to 12 Gaussians with random scales."""
    g = torch.Generator().manual_seed(seed)
    count = int(torch.randint(4, 13, (), generator=g))
    scale = 0.3 + 1.2 * torch.rand((), generator=g, dtype=torch.float64)
    means = scale * torch.randn(count, dimension, generator=g, dtype=torch.float64)
    spread = scale * (0.05 + 0.3 * torch.rand(count, generator=g, dtype=torch.float64))
    weights = 0.2 + torch.rand(count, generator=g, dtype=torch.float64)
    return Mixture(weights, means, spread**2)


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
        self.reference = distribution.flow(self.x1, (one * alpha, one * sigma), (one, zero), None, 400)
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


# ---------------------------------------------------------------------- the peers' grids, as sigma / alpha, falling


def top(p: Problem) -> float:
    return min(p.largest, 1e6)


def at_times(p: Problem, n: int, last: float) -> np.ndarray:
    """Uniform in the process's own time, down to the time of the last sigma."""
    end = max(float(p.schedule.time(-2 * math.log(last))), 0.0)
    alpha, sigma = p.schedule.alpha_sigma(torch.linspace(1, end, n, dtype=torch.float64))
    return np.minimum((sigma / alpha).numpy(), 1e6)


def trailing(p: Problem, n: int, last: float) -> np.ndarray:
    """Uniform in the process's own time, the last of n steps to 0; `last` is not used."""
    alpha, sigma = p.schedule.alpha_sigma(torch.linspace(1, 0, n + 1, dtype=torch.float64)[:n])
    return np.minimum((sigma / alpha).numpy(), 1e6)


def karras(p: Problem, n: int, last: float) -> np.ndarray:
    return np.linspace(min(top(p), 1e3) ** (1 / 7), last ** (1 / 7), n) ** 7


def log_uniform(p: Problem, n: int, last: float) -> np.ndarray:
    return np.exp(np.linspace(math.log(min(top(p), 1e3)), math.log(last), n))


GRIDS = (at_times, karras, log_uniform)


def grids() -> Iterator[tuple[str, Callable]]:
    yield "trailing", partial(trailing, last=0.0)
    for grid in GRIDS:
        for last in LAST:
            yield f"{grid.__name__} {last}", partial(grid, last=last)


# ---------------------------------------------------------------------- diffusers


def diffusers_row(cls, options: dict, to_zero: bool, grid: Callable, p: Problem, n: int) -> Tensor:
    """A sigma-based scheduler on this grid; alpha = 1 / sqrt(1 + sigma^2) is its own convention.

    to_zero: whether a last step leads to sigma = 0; DEIS and the bh1 form of UniPC cannot take it and stop before.
    """
    scheduler = cls(prediction_type="sample", **options)
    scheduler.set_timesteps(n)
    sigmas = grid(p, n if to_zero else n + 1)
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0.0) if to_zero else sigmas)
    scheduler.timesteps = torch.arange(n, 0, -1)
    scheduler._step_index = 0
    x = p.eps * float(sigmas[0]) / math.sqrt(1 + float(sigmas[0]) ** 2)
    for t, sigma in zip(scheduler.timesteps, sigmas[:n], strict=True):
        alpha = 1 / math.sqrt(1 + sigma**2)
        x = scheduler.step(p.mean(x, alpha, sigma * alpha), t, x).prev_sample.double()
    return x if to_zero else x * math.sqrt(1 + float(sigmas[-1]) ** 2)


def diffusers_flow_row(cls, options: dict, p: Problem, n: int) -> Tensor:
    """A scheduler's own flow mode, uniform in t; p must be the flow process."""
    scheduler = cls(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, **options)
    scheduler.set_timesteps(n)
    scheduler.sigmas = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    scheduler.sigmas[0] = 1 - 1e-6
    x = p.eps
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1].tolist(), strict=True):
        mean = p.mean(x, 1 - sigma, sigma)
        x = scheduler.step((x - mean) / sigma, t, x).prev_sample.double()
    return x


def diffusers_table_row(cls, options: dict, schedule: str, extra: int, p: Problem, n: int) -> Tensor:
    """A scheduler on its own table of 1,000 steps (DDIM, PNDM); `extra`: evaluations beyond its steps."""
    scheduler = cls(beta_schedule=schedule, prediction_type="epsilon", **options)
    scheduler.set_timesteps(n - extra)
    bar = torch.tensor(p.schedule.alphas_bar, dtype=torch.float64)
    scheduler.alphas_cumprod = bar
    x = p.eps
    for t in scheduler.timesteps:
        alpha, sigma = math.sqrt(float(bar[t])), math.sqrt(1 - float(bar[t]))
        x = scheduler.step((x - alpha * p.mean(x, alpha, sigma)) / sigma, t, x).prev_sample.double()
    return x


def diffusers_rows(process: str) -> Iterator[tuple[str, Row]]:
    from diffusers import DDIMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler, PNDMScheduler
    from diffusers import UniPCMultistepScheduler as UniPC

    kinds = {
        "DPM++ 2M": (DPMSolverMultistepScheduler, {"solver_order": 2}),
        "DPM++ 2M heun": (DPMSolverMultistepScheduler, {"solver_order": 2, "solver_type": "heun"}),
        "DPM++ 3M": (DPMSolverMultistepScheduler, {"solver_order": 3}),
        "DPM++ 1": (DPMSolverMultistepScheduler, {"solver_order": 1}),
        "UniPC-2": (UniPC, {"solver_order": 2}),
        "UniPC-3": (UniPC, {"solver_order": 3}),
        "UniPC-3 bh1": (UniPC, {"solver_order": 3, "solver_type": "bh1"}),
        "DEIS-2": (DEISMultistepScheduler, {"solver_order": 2}),
        "DEIS-3": (DEISMultistepScheduler, {"solver_order": 3}),
    }
    for name, (cls, options) in kinds.items():
        to_zero = not (name.startswith("DEIS") or name.endswith("bh1"))
        for words, grid in grids():
            yield f"diffusers {name} {words}", partial(diffusers_row, cls, options, to_zero, grid)
        if process == "flow" and to_zero:
            yield f"diffusers {name} flow", partial(diffusers_flow_row, cls, options)
    tables = {"vp": "linear", "cosine": "squaredcos_cap_v2"}
    if process in tables:
        for spacing in ("leading", "trailing", "linspace"):
            ddim = {"timestep_spacing": spacing, "clip_sample": False}
            yield f"diffusers DDIM {spacing}", partial(diffusers_table_row, DDIMScheduler, ddim, tables[process], 0)
            pndm = {"timestep_spacing": spacing, "skip_prk_steps": True, "set_alpha_to_one": True}
            yield f"diffusers PNDM {spacing}", partial(diffusers_table_row, PNDMScheduler, pndm, tables[process], 1)


# ---------------------------------------------------------------------- azula


def azula_row(cls, options: dict, stop: float, p: Problem, n: int) -> Tensor:
    """Uniform in the process's own time from the start to the time where sigma / alpha = stop (0 is t = 0)."""
    import azula.denoise as az

    class OurSchedule:
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return p.schedule.alpha_sigma(t)

    class Exact(az.Denoiser):
        schedule = OurSchedule()

        def forward(self, x, t, **kwargs):
            return az.DiracPosterior(p.mean(x, *self.schedule(t)))

    start = float(p.schedule.time(-2 * math.log(1e6))) if math.isinf(p.largest) else 1.0
    end = max(float(p.schedule.time(-2 * math.log(stop))), 0.0) if stop else 0.0
    sampler = cls(Exact(), start=start, stop=end, steps=n, silent=True, dtype=torch.float64, **options)
    x = sampler(p.eps * float(p.schedule.alpha_sigma(start)[1]))
    return x / float(p.schedule.alpha_sigma(end)[0])


def azula_rows() -> Iterator[tuple[str, Row]]:
    from azula import sample as az

    for cls in (az.zABSampler, az.vABSampler, az.zEABSampler, az.xEABSampler, az.REABSampler):
        for order in (2, 3):
            for stop in (0.0, *LAST):
                name = f"azula {cls.__name__[:-7]}{order} to {stop}"
                yield name, partial(azula_row, cls, {"order": order}, stop)
    for cls in (az.DDIMSampler, az.EulerSampler):
        for stop in (0.0, LAST[0]):
            yield f"azula {cls.__name__[:-7]} to {stop}", partial(azula_row, cls, {}, stop)


# ---------------------------------------------------------------------- k-diffusion


@lru_cache(maxsize=1)
def k_diffusion():
    """The package's samplers alone: an empty package in place of its __init__, which imports much that is absent."""
    spec = importlib.util.find_spec("k_diffusion")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    sys.modules.setdefault("k_diffusion.utils", types.ModuleType("k_diffusion.utils"))
    package.utils = sys.modules["k_diffusion.utils"]
    package.utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    for absent in ("torchdiffeq", "torchsde"):
        try:
            importlib.import_module(absent)
        except ImportError:
            sys.modules[absent] = types.ModuleType(absent)
            sys.modules[absent].odeint = None
    return importlib.import_module("k_diffusion.sampling")


def k_row(sampler: Callable, cost: int, grid: Callable, p: Problem, n: int) -> Tensor:
    """cost: evaluations per step; of two, the last step takes one."""
    steps = n if cost == 1 else (n + 1) // 2
    sigmas = torch.from_numpy(np.append(grid(p, steps), 0.0))

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return p.mean(x, 1.0, float(sigma[0]))

    with torch.no_grad():
        return sampler(model, p.eps * sigmas[0], sigmas, disable=True)


def k_rows() -> Iterator[tuple[str, Row]]:
    k = k_diffusion()
    samplers = {"2M": (k.sample_dpmpp_2m, 1), "LMS": (k.sample_lms, 1), "Heun": (k.sample_heun, 2)}
    samplers |= {"DPM-2": (k.sample_dpm_2, 2), "Euler": (k.sample_euler, 1)}
    for name, (sampler, cost) in samplers.items():
        for words, grid in grids():
            yield f"k-diffusion {name} {words}", partial(k_row, sampler, cost, grid)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="ring", choices=sorted(DATA))
    parser.add_argument("--n", type=int, default=40960)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--processes", nargs="*", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    began = time.time()
    distribution = DATA[options.data]()
    table = {}
    for name in options.processes:
        problem = Problem(distribution, PROCESSES[name], options.n, options.seed)
        few = Problem(distribution, PROCESSES[name], min(options.n, FEW), options.seed)
        rows = [*diffusers_rows(name), *azula_rows(), *k_rows()]
        table[name] = [compare(few, problem, rows, budget) for budget in options.budgets]
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
                "geometric_mean_ratio": {m: math.exp(float(np.mean(np.log(r)))) for m, r in ratios.items()},
                "seconds": round(time.time() - began),
                "processes": table,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
