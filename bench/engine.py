"""How much the engine adds to a sampling step: python bench/engine.py prints JSON.

The floor of a step is its own non-zero terms as plain torch operations, one per term, in straight-line code with the
coefficients as literals (and for a stochastic step one `torch.randn`). The model's call is not part of either side: the
denoiser is a stub that returns a prepared belief, and the time of calling it is subtracted. Every figure is the median
of interleaved repetitions of a whole run of 20 evaluations, on one thread.

Targets: at most 1.5 for deterministic steps, 1.75 for UniPC-3, 1.35 for stochastic ones.
"""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.noise import Noise
from backdrift.posterior import TensorPosterior
from backdrift.process import Gaussian
from backdrift.sample import solvers
from backdrift.sample.grids import DataScaled
from backdrift.sample.plan import Plan
from backdrift.schedule import VP

SOLVERS = {  # with their targets
    "default": (solvers.AdamsFlow(), 1.5),
    "DDIM": (solvers.DDIM(), 1.5),
    "DPM-Solver++ 2M": (solvers.DPMpp(2), 1.5),
    "DPM-Solver++ 3M": (solvers.DPMpp(3), 1.5),
    "DEIS 3": (solvers.DEIS(3), 1.5),
    "trigonometric 3": (solvers.Multistep(order=3), 1.5),
    "UniPC 2": (solvers.UniPC(2), 1.5),
    "UniPC 3": (solvers.UniPC(3), 1.75),
    "Heun": (solvers.Heun(), 1.5),
    "DDPM": (solvers.DDPM(), 1.35),
}
SHAPES = [(1, 3, 32, 32), (64, 3, 32, 32), (16, 4, 64, 64)]
STEPS, SECONDS = 20, 2.5


class Stub(Denoiser):
    """Returns one prepared belief."""

    def __init__(self, schedule: VP, shape: tuple[int, ...]):
        super().__init__()
        self.process, self.event_shape = Gaussian(schedule), shape[1:]
        self.posterior = TensorPosterior(torch.randn(shape))

    def forward(self, xt, t, cond=None):
        return self.posterior


def straight_line(plan: Plan, shape: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """The plan as a function (x_1, D) of plain torch operations, with D in place of every D_n."""
    rows = []
    for n in range(plan.evaluations + 1):
        terms = [("x" if j == 0 else f"y{j - 1}", v) for j, v in enumerate(plan.states[n].tolist()) if v]
        terms += [("D", v) for v in plan.means[n].tolist() if v]
        rows.append(terms + [(f"xi{m}", v) for m, v in enumerate(plan.noise[n].tolist()) if v])
    last = {name: n for n, terms in enumerate(rows) for name, _ in terms}
    lines = ["def floor(x, D):"]
    for n, terms in enumerate(rows):
        lines += [f"    {name} = randn(shape)" for name, _ in terms if name.startswith("xi")]
        (first, value), *rest = terms
        lines.append(f"    y{n} = {first}" if value == 1 and not rest else f"    y{n} = {first} * {value!r}")
        lines += [f"    y{n}.add_({name}, alpha={v!r})" for name, v in rest]
        lines += [f"    del {name}" for name, _ in terms if last[name] == n and name not in ("x", "D")]
    lines.append(f"    return y{plan.evaluations}")
    scope = {"randn": torch.randn, "shape": shape}
    exec("\n".join(lines), scope)
    return scope["floor"]


def interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median processor seconds of each call, taken in turns for SECONDS; on one thread other work does not count."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[next(iter(times))]) < 15:
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(name: str, shape: tuple[int, ...]) -> dict:
    (solver, target), schedule = SOLVERS[name], VP()
    chosen, intervals = solver.budget(STEPS, schedule, 1.0)
    times = DataScaled().times(schedule, intervals)
    plan = chosen.plan(schedule, times)
    stub, noise, x = Stub(schedule, shape), Noise.of(0, shape[0]), torch.randn(shape)
    floor, D = straight_line(plan, shape), stub.posterior.mean

    def model_calls() -> None:
        for t in plan.times[:-1].tolist():
            _ = stub(x, t, None).mean

    seconds = interleaved(
        {
            "engine": lambda: plan.run(stub, x, noise=noise),
            "floor": lambda: floor(x, D),
            "model": model_calls,
        }
    )
    # on its own: it would leave cold caches to whatever comes after it
    seconds |= interleaved({"compile": lambda: chosen.plan(schedule, times)})
    engine = seconds["engine"] - seconds["model"]
    return {
        "solver": name,
        "shape": shape,
        "engine_us_per_step": round(engine / STEPS * 1e6, 2),
        "floor_us_per_step": round(seconds["floor"] / STEPS * 1e6, 2),
        "ratio": round(engine / seconds["floor"], 3),
        "target": target,
        "compile_us_per_step": round(seconds["compile"] / STEPS * 1e6, 2),
    }


def keep_freed_memory() -> bool:
    """Tell glibc not to give freed memory back: whether a block is faulted in anew is chance, and outweighs a step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(libc.mallopt(trim_threshold, 1 << 30) and libc.mallopt(mmap_threshold, 1 << 25))


def main() -> None:
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    with torch.no_grad():
        rows = [measure(name, shape) for name in SOLVERS for shape in SHAPES]
    about = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "freed_memory_kept": kept,
    }
    print(json.dumps({**about, "steps": STEPS, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
