"""The peers' samplers as rows for peers.py: diffusers, azula and k-diffusion, each with every grid it may choose."""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from peers import Problem

LAST = (0.002, 0.01, 0.03, 0.1)  # the last sigma / alpha before 0 that peers may choose from
Row = Callable[["Problem", int], Tensor]

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
