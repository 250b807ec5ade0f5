"""Our plans against the samplers of diffusers and k-diffusion: same start, same grid, same noises, same exact denoiser.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install torch==2.13.0 diffusers==0.42.1 scipy tqdm pillow safetensors torchdiffeq torchsde
    /tmp/peers/bin/pip install --no-deps k-diffusion==0.1.1.post1
    PYTHONPATH=src /tmp/peers/bin/python bench/agree.py            # one JSON line per comparison
    PYTHONPATH=src /tmp/peers/bin/python bench/agree.py --table    # the same as a Markdown table

The peers live in an environment of their own and are no dependency of the project. Data: 8 Gaussians of standard
deviation 0.3 on the unit circle, so the scale of the data is 1. A figure is the largest difference of the outputs:

* shipped: all in float32, the peer with its own table of noise levels;
* float32: the same with the peer's table replaced by ours rounded to float32; this one passes at 1e-5;
* float64: both sides in float64, which tells a rounding from a formula (diffusers' DPM-Solver casts to torch.float32,
  which is float64 for that while; k-diffusion's dpm_fast keeps its two ends in float32);
* our_rounding, peer_rounding: how far a side's float32 is from its own float64.

ROUNDING is a row above 1e-5 in float32 whose float64 agrees to 1e-9. PEER is a row where the peer leaves the published
formula; `matched` says how, and otherwise what had to be set alike.

diffusers runs on its linear table of 1,000 betas, on the grid that each scheduler makes itself. k-diffusion knows
alpha = 1 only: it is compared on `EDM` and `VE`, whose last sigma is above 0, and, for the step to sigma = 0 that it
usually ends with, on `Flow` at the same sigma / alpha, as none of these samplers depends on the scale of x.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from peer_rows import k_diffusion
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.exact import Mixture
from backdrift.process import Gaussian
from backdrift.sample import solvers
from backdrift.sample.exponential import between
from backdrift.sample.expsde import Churn, kept
from backdrift.sample.gauge import NOISE, pairs
from backdrift.sample.grids import Grid, Leading, Linspace, Trailing
from backdrift.sample.ode import Euler, Heun
from backdrift.sample.solver import Solver
from backdrift.sample.unipc import BH1, BH2
from backdrift.schedule import EDM, VE, Flow, Schedule, Tabulated

COUNT = 256  # trajectories
TOLERANCE = 1e-5
TABLE = Tabulated.linear()
RATIOS = [math.sqrt((1 - a) / a) for a in TABLE.alphas_bar]  # sigma / alpha of each entry of the table


class Mode(NamedTuple):
    """The arithmetic of both sides, and whether the peer keeps its own table of noise levels."""

    dtype: torch.dtype
    own_table: bool = False


MODES = {"shipped": Mode(torch.float32, True), "float32": Mode(torch.float32), "float64": Mode(torch.float64)}


def ring() -> Mixture:
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return Mixture(torch.arange(1.0, 9.0), torch.stack([angle.cos(), angle.sin()], 1), 0.09)


def denoiser(schedule: Schedule) -> Denoiser:
    return ring().denoiser(Gaussian(schedule))


def normals(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(COUNT, 2, generator=generator, dtype=torch.float64) for _ in range(count)]


@dataclass(frozen=True)
class Case:
    """One comparison. peer: the output from the start noise and the fresh noises, in a dtype.

    matched: what had to be set alike. wrong: the peer is known to leave the paper here.
    """

    name: str
    ours: str
    schedule: Schedule
    solver: Solver
    times: list[float]
    peer: Callable[[Mode, Tensor, list[Tensor]], Tensor]
    matched: str
    wrong: bool = False


def compare(case: Case) -> dict:
    plan = case.solver.plan(case.schedule, case.times)
    model = denoiser(case.schedule)
    sigma = float(case.schedule.alpha_sigma(case.times[0])[1])
    (eps,), noises = normals(1, 0), normals(len(plan.noise_intervals), 1)
    mine, theirs = {}, {}
    for name, mode in MODES.items():
        fresh = [xi.to(mode.dtype) for xi in noises]
        mine[name] = plan.run(model, (eps * sigma).to(mode.dtype), noise=fresh).double()
        theirs[name] = case.peer(mode, eps.to(mode.dtype), fresh).double()
    gap = {name: largest(mine[name] - theirs[name]) for name in MODES}
    sides = {"our_rounding": mine, "peer_rounding": theirs}
    rounding = {name: largest(side["float32"] - side["float64"]) for name, side in sides.items()}
    status = "PASS" if gap["float32"] <= TOLERANCE else "ROUNDING" if gap["float64"] <= 1e-9 else "FAIL"
    verdict = {"status": "PEER" if case.wrong else status, "matched": case.matched}
    return {"peer": case.name, "ours": case.ours, "steps": len(case.times) - 1} | gap | rounding | verdict


def largest(x: Tensor) -> float:
    return float(x.abs().max())


# ---------------------------------------------------------------------- diffusers


def time_of(step: float) -> float:
    """Our time of an entry of the table; between two, where diffusers' linear sigma / alpha puts it."""
    step = float(step)
    between_two = TABLE.time(-2 * math.log(np.interp(step, range(len(RATIOS)), RATIOS)))
    return TABLE.time_of_step(int(step)) if step.is_integer() else float(between_two)


def put_table(scheduler, dtype: torch.dtype) -> None:
    """Our table in place of the scheduler's, which float32 blurs: 1 - alphas_cumprod has three digits at its start."""
    bar = torch.tensor(TABLE.alphas_bar, dtype=torch.float64)
    scheduler.alphas_cumprod = bar.to(dtype)
    for name in ("final_alpha_cumprod", "one"):
        if hasattr(scheduler, name):
            whole = float(getattr(scheduler, name)) == 1
            setattr(scheduler, name, torch.ones((), dtype=dtype) if whole else scheduler.alphas_cumprod[0])
    if hasattr(scheduler, "sigmas"):
        last = RATIOS[0] if float(scheduler.sigmas[-1]) else 0.0
        levels = np.interp(scheduler.timesteps.numpy(), range(len(RATIOS)), RATIOS)
        scheduler.sigmas = torch.tensor([*levels, last], dtype=dtype)


def diffusers_peer(make: Callable, n: int, mode: Mode, eps: Tensor, noises: list[Tensor]) -> Tensor:
    """The scheduler's loop as its documentation writes it."""
    scheduler = make()
    scheduler.set_timesteps(n)
    if not mode.own_table:
        put_table(scheduler, mode.dtype)
    model, fresh = denoiser(TABLE), iter(noises)
    predicts_noise = scheduler.config.prediction_type == "epsilon"
    alpha, sigma = pairs(TABLE, [time_of(scheduler.timesteps[0])])[0]
    # Heun's state is x / alpha
    x = eps * (sigma / alpha if type(scheduler).__name__.startswith("Heun") else sigma)
    with mock.patch(f"{type(scheduler).__module__}.randn_tensor", lambda *args, **kw: next(fresh), create=True):
        for t in scheduler.timesteps:
            z, time = scheduler.scale_model_input(x, t), time_of(t)
            guess = model(z, time).mean.to(mode.dtype)
            if predicts_noise:
                ((alpha, sigma),) = pairs(TABLE, [time])
                guess = (z - alpha * guess) / sigma
            with mock.patch.object(torch, "float32", mode.dtype):
                x = scheduler.step(guess, t, x).prev_sample
    return x


def diffusers_case(name, ours, cls, options, solver, n, matched, end=0.0, times=None, draws=None, **rest) -> Case:
    """times: our grid where it is not the scheduler's timesteps, then `end`. draws: as in `k_case`."""
    table = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "sample"}

    def make():
        return cls(**table | options)

    if times is None:
        scheduler = make()
        scheduler.set_timesteps(n)
        times = [time_of(t) for t in dict.fromkeys(scheduler.timesteps.tolist())] + [end]

    def peer(mode, eps, noises):
        return diffusers_peer(make, n, mode, eps, draws(noises) if draws else noises)

    return Case(f"diffusers {name}", ours, TABLE, solver, times, peer, matched, **rest)


def no_last(noises: list[Tensor]) -> list[Tensor]:
    return [*noises[:-1], torch.zeros_like(noises[-1])]


def diffusers_cases() -> Iterator[Case]:
    for n in (10, 20, 50):
        for some in (first_order_cases, pndm_cases, exponential_cases):
            yield from some(n)


def first_order_cases(n: int) -> Iterator[Case]:
    import diffusers as df

    ddim = "DDIM", "DDIM()", df.DDIMScheduler
    small, large = ("DDPM fixed_small", "DDPM(0)", df.DDPMScheduler), ("DDPM fixed_large", "DDPM(1)", df.DDPMScheduler)
    for spacing in ("leading", "trailing"):
        base, words = {"timestep_spacing": spacing, "clip_sample": False}, f"{spacing} grid"
        yield diffusers_case(*ddim, base, solvers.DDIM(), n, words)
        words = f"{spacing} grid; noises, the last one 0"
        yield diffusers_case(*small, base, solvers.DDPM(), n, words, draws=no_last)
        options = base | {"variance_type": "fixed_large"}
        yield diffusers_case(*large, options, solvers.DDPM(1.0), n, words, draws=no_last)
    words = "trailing grid: the peer adds noise in the last step too, where the paper's Algorithm 2 has z = 0"
    yield diffusers_case(*large, options, solvers.DDPM(1.0), n, words, wrong=True)
    options = {"timestep_spacing": "linspace", "clip_sample": False}
    words = "linspace grid: the peer steps to t - 1000 // n and evaluates there as if at the grid's next time"
    yield diffusers_case(*ddim, options, solvers.DDIM(), n, words, wrong=True)
    for spacing in ("linspace", "leading", "trailing"):
        options, words = {"timestep_spacing": spacing}, f"{spacing} grid, last sigma 0"
        yield diffusers_case("Heun", "Heun(NOISE)", df.HeunDiscreteScheduler, options, solvers.Heun(NOISE), n, words)


def pndm_cases(n: int) -> Iterator[Case]:
    from diffusers import PNDMScheduler

    words, base = ("PNDM", "PLMS()", PNDMScheduler), {"skip_prk_steps": True, "prediction_type": "epsilon"}
    for spacing in ("leading", "trailing"):
        options = base | {"timestep_spacing": spacing, "set_alpha_to_one": True}
        matched = f"{spacing} grid; skip_prk_steps; set_alpha_to_one"
        yield diffusers_case(*words, options, solvers.PLMS(), n, matched)
    # without set_alpha_to_one its last step goes from entry 0 to entry 0: ours ends there
    options = base | {"timestep_spacing": "leading"}
    times = [time_of(k) for k in range((n - 1) * (1000 // n), -1, -(1000 // n))]
    matched = "leading grid to entry 0, where the peer's last evaluation changes nothing; skip_prk_steps"
    yield diffusers_case(*words, options, solvers.PLMS(), n, matched, times=times)


def exponential_cases(n: int) -> Iterator[Case]:
    from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    to_first = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    first, first_words = TABLE.time_of_step(0), "linspace grid, last sigma that of entry 0; lower_order_final off"
    second = "DPM++ 2M", "DPMpp(2)", DPMSolverMultistepScheduler
    for spacing in ("linspace", "leading", "trailing"):
        # at order 2 their lower_order_final is the step to sigma = 0 alone
        options, words = {"timestep_spacing": spacing, "solver_order": 2}, f"{spacing} grid, last sigma 0"
        yield diffusers_case(*second, options, solvers.DPMpp(2), n, words)
    yield diffusers_case(*second, {"solver_order": 2} | to_first, solvers.DPMpp(2), n, first_words, end=first)
    options, words = {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}, "linspace grid, last sigma 0; noises"
    yield diffusers_case("DPM++ 2M SDE", "SDE2M()", DPMSolverMultistepScheduler, options, solvers.SDE2M(), n, words)
    third = "DPM++ 3M", "DPMpp(3, published=True)", DPMSolverMultistepScheduler
    solver, options = solvers.DPMpp(3, published=True), {"solver_order": 3}
    words = "linspace grid, last sigma 0; lower_order_final off"
    yield diffusers_case(*third, options | {"lower_order_final": False}, solver, n, words)
    yield diffusers_case(*third, options | to_first, solver, n, first_words, end=first)
    for order, (kind, scale) in itertools.product((1, 2, 3), (("bh1", BH1), ("bh2", BH2))):
        solver, options = solvers.PublishedUniPC(order, scale), {"solver_order": order, "solver_type": kind}
        row = f"UniPC-{order} {kind}", f"PublishedUniPC({order}, {kind.upper()})", UniPCMultistepScheduler
        yield diffusers_case(*row, options | to_first, solver, n, first_words, end=first)
        if kind == "bh2":
            # bh1 cannot end at sigma = 0: its B(h) = -h is infinite there
            yield diffusers_case(*row, options, solver, n, "linspace grid, last sigma 0; lower_order_final on")
    for order in (2, 3):
        solver = replace(solvers.LogDEIS(order), warmup=False)
        row = f"DEIS-{order}", f"LogDEIS({order}), warmup off", DEISMultistepScheduler
        options = {"solver_order": order, "lower_order_final": False}
        yield diffusers_case(*row, options, solver, n, first_words, end=first)


# ---------------------------------------------------------------------- k-diffusion


def k_case(name, ours, schedule, sampler, solver, times, matched, draws=None, **options) -> Case:
    """draws: turns our fresh noises into those that their noise sampler returns, call by call."""
    levels = [sigma / alpha for alpha, sigma in pairs(schedule, times)]
    last = float(schedule.alpha_sigma(times[-1])[0])

    def peer(mode, eps, noises):
        model, fresh = denoiser(schedule), iter(draws(noises) if draws else noises)
        sigmas = torch.tensor(levels, dtype=mode.dtype)

        def mean(x, sigma):
            t = float(schedule.time(-2 * math.log(float(sigma[0]))))
            return model(x * float(schedule.alpha_sigma(t)[0]), t).mean.to(mode.dtype)

        sampled = "noise_sampler" in inspect.signature(sampler).parameters
        extra = {"noise_sampler": lambda *sigma: next(fresh, 0.0)} if sampled else {}
        with mock.patch("torch.randn_like", lambda x: next(fresh, 0.0 * x)):
            return last * sampler(mean, eps * sigmas[0], sigmas, disable=True, **extra, **options)

    return Case(f"k-diffusion {name}", ours, schedule, solver, times, peer, matched)


def path_of_2s(schedule: Schedule, times: list[float]) -> Callable[[list[Tensor]], list[Tensor]]:
    """dpmpp_sde asks for the noise of the whole step after that of its stage: in ours the stage's and a fresh rest."""

    def draws(noises):
        out, fresh = [], iter(noises)
        for t, s in itertools.pairwise(times):
            if not schedule.alpha_sigma(s)[1]:
                break
            at, mid, to = pairs(schedule, [t, between(schedule, t, s, 0.5), s])
            stage, rest = next(fresh), next(fresh)
            decay, std = kept(mid, to, 1.0)
            out += [stage, (decay * kept(at, mid, 1.0)[1] * stage + std * rest) / kept(at, to, 1.0)[1]]
        return out

    return draws


def k_cases() -> Iterator[Case]:
    k = k_diffusion()
    exact = solvers.SASolver(2, corrector=False)
    rows = (
        ("euler", "DDIM()", solvers.DDIM(), {}),
        ("heun", "Heun(NOISE)", Heun(NOISE), {}),
        ("dpm_2", "DPMSolver(2)", solvers.DPMSolver(2), {}),
        ("lms", "LMS(4), warmup off", replace(solvers.LMS(4), warmup=False), {}),
        ("dpmpp_2m", "DPMpp(2)", solvers.DPMpp(2), {}),
        ("dpmpp_2s_ancestral, eta 0", "DPMpp2S()", solvers.DPMpp2S(), {"eta": 0.0}),
        ("euler_ancestral", "DDIM(1)", solvers.DDIM(1.0), {}),
        ("dpmpp_2m_sde", "SDE2M()", solvers.SDE2M(), {}),
        ("dpmpp_2m_sde, eta 0.5", "SDE2M(0.5)", solvers.SDE2M(0.5), {"eta": 0.5}),
        ("dpmpp_2m_sde, heun", "SASolver(2, corrector=False)", exact, {"solver_type": "heun"}),
        ("dpmpp_3m_sde", "PublishedSDE3M()", solvers.PublishedSDE3M(), {}),
    )

    def fast(model, x, sigmas, disable):
        return k.sample_dpm_fast(model, x, float(sigmas[-1]), float(sigmas[0]), 3 * (len(sigmas) - 2), disable=disable)

    for n in (10, 20, 50):
        karras = (np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), n) ** 7).tolist()
        uniform = torch.linspace(1, 0, n + 1, dtype=torch.float64).tolist()
        grids = (
            ("Karras, 80 to 0.002", EDM(), uniform),
            ("log-uniform, 50 to 0.01", VE(), uniform),
            ("Karras, 80 to 0.002 and 0", Flow(), [r / (1 + r) for r in karras] + [0.0]),
        )
        for words, schedule, times in grids:
            for name, ours, solver, options in rows:
                sampler = getattr(k, f"sample_{name.split(',')[0]}")
                yield k_case(name, ours, schedule, sampler, solver, times, words, **options)
            words, draws = f"{words}; the step's noise made of ours, see path_of_2s", path_of_2s(schedule, times)
            yield k_case("dpmpp_sde", "SDE2S()", schedule, k.sample_dpmpp_sde, solvers.SDE2S(), times, words, draws)
        stages = (3,) * (n - 2) + (2, 1)
        words = "dpm_fast", "DPMSolver(3, stages=(3, .., 3, 2, 1))"
        yield k_case(*words, VE(), fast, solvers.DPMSolver(3, stages), uniform, "log-uniform, 50 to 0.01")
        schedule, words = EDM(sigma_max=160.0), "Karras, 80 to 0.002, as ours never leaves the schedule's range; noises"
        times = [float(schedule.time(-2 * math.log(r))) for r in karras]
        for name, base in (("heun", Heun(NOISE)), ("euler", Euler(NOISE))):
            row = f"{name}, s_churn 5", f"Churn({name}, 5)", schedule, getattr(k, f"sample_{name}")
            yield k_case(*row, Churn(base, 5.0), times, words, s_churn=5.0)


def grid_gap(grid: Grid, spacing: str) -> dict:
    """Our discrete grids against DDIM's time steps, for every number of steps from 2 to 1,000."""
    from diffusers import DDIMScheduler

    scheduler, gaps, longer = DDIMScheduler(timestep_spacing=spacing), {}, []
    for n in range(2, 1001):
        scheduler.set_timesteps(n)
        if len(scheduler.timesteps) > n:
            longer.append(n)
        else:
            gaps[n] = largest((grid.times(TABLE, n)[:-1] * 1000 - 1).round() - scheduler.timesteps)
    apart, gap = [n for n, gap in gaps.items() if gap], max(gaps.values())
    found = {"peer": f"diffusers {spacing} time steps", "ours": repr(grid), "largest": gap}
    status = "PASS" if not gap else "ROUNDING" if gap == 1 else "FAIL"
    return found | {"apart": apart, "peer_has_one_more": longer, "status": status}


def summary(found: list[dict]) -> Iterator[str]:
    """A Markdown table, one row per sampler: the worst over its grids and numbers of steps."""
    yield "| peer | ours | runs | shipped | float32 | float64 | |"
    yield "|---|---|---:|---:|---:|---:|---|"
    groups: dict[tuple, list[dict]] = {}
    for row in found:
        groups.setdefault((row["peer"], row["ours"], row["status"] == "PEER"), []).append(row)
    for (peer, ours, _), rows in groups.items():
        worst = " | ".join(f"{max(row[name] for row in rows):.1e}" for name in MODES)
        yield f"| {peer} | `{ours}` | {len(rows)} | {worst} | {', '.join(dict.fromkeys(r['status'] for r in rows))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print a Markdown table instead of JSON lines")
    table = parser.parse_args().table
    torch.set_num_threads(1)
    rows = (compare(case) for case in itertools.chain(diffusers_cases(), k_cases()))
    if table:
        print(*(f"{name} {version(name)}" for name in ("diffusers", "k-diffusion", "torch")), sep=", ", end="\n\n")
        print(*summary(list(rows)), sep="\n")
        return
    grids = ((Leading(), "leading"), (Trailing(), "trailing"), (Linspace(), "linspace"))
    for row in itertools.chain((grid_gap(*grid) for grid in grids), rows):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
