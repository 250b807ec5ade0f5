"""What each solver is worth, measured without sampling noise.

On Gaussian data a plan's output is affine in its start and noises (`Plan.affine`), so its error against the exact law
is a number. In one dimension the probability flow between two times is the increasing map that takes one marginal to
the other, F_s^-1 F_t, so that on a mixture the exact answer for any start is two distribution functions away.

    order      of the error on Gaussian data from the exact marginal, between two finite log-SNRs, under refinement:
               the root mean square error of the map for deterministic solvers, the error of the output's standard
               deviation for stochastic ones
    error      on 1-D mixtures from the quantiles of the start, relative to the error of returning the data's mean
    bias       the output's standard deviation on Gaussian data over the true one, minus 1, over the whole of [0, 1]
    largest    the largest entry of the plan's tables
    strong     the order of a stochastic solver's distance between n and 2n steps along one Brownian path; on Gaussian
               data both outputs are linear in the same increments, so that this too is a number
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from backdrift.exact.mixture import Mixture
from backdrift.noise import Noise
from backdrift.process.gaussian import Gaussian
from backdrift.sample import solvers
from backdrift.sample.gauge import FLOW, NOISE, TRIG
from backdrift.sample.grids import DataScaled, Grid, LogSNR
from backdrift.sample.plan import Plan
from backdrift.sample.solver import Sampler, Solver
from backdrift.sample.variable import CLOCK
from backdrift.schedule import EDM, VP, Schedule

MEANS = torch.tensor([0.5, -0.7, 0.3], dtype=torch.float64)
VARIANCES = torch.tensor([0.03, 0.25, 1.0], dtype=torch.float64)


def registered() -> dict[str, Sampler]:
    """Every solver for Gaussian processes, in the forms that the audit and the conformance tests look at."""
    s = solvers
    return {
        "default (AdamsFlow)": s.AdamsFlow(),
        "DDIM": s.DDIM(),
        "DDIM eta=1 (Euler ancestral)": s.DDIM(1.0),
        "DDPM": s.DDPM(),
        "DDPM larger variance": s.DDPM(1.0),
        "Euler": s.Euler(),
        "Heun": s.Heun(),
        "Heun churn": s.Churn(s.Heun()),
        "Euler churn": s.Churn(s.Euler()),
        "PLMS": s.PLMS(),
        **{f"iPNDM {k}": s.IPNDM(k) for k in (2, 3, 4)},
        **{f"LMS {k}": s.LMS(k) for k in (2, 3, 4)},
        **{f"DEIS {k}": s.DEIS(k) for k in (2, 3)},
        **{f"DEIS log-rho {k}": s.LogDEIS(k) for k in (2, 3)},
        **{f"DPM-Solver {k}": s.DPMSolver(k) for k in (1, 2, 3)},
        "DPM-Solver++ 2S": s.DPMpp2S(),
        "DPM-Solver++ 2M": s.DPMpp(2),
        "DPM-Solver++ 3M": s.DPMpp(3),
        **{f"DPM-Solver++ exact {k}": s.ExactDPMpp(k) for k in (2, 3, 4)},
        **{f"UniPC {k}": s.UniPC(k) for k in (1, 2, 3)},
        "RES 2S": s.ExponentialRK(2),
        "Exponential RK 3": s.ExponentialRK(3),
        "Exponential RK 3, noise": s.ExponentialRK(3, gauge=NOISE),
        **{f"Trigonometric {k}": s.Multistep(TRIG, CLOCK, k) for k in (2, 3, 4)},
        "Trigonometric 3 corrected": s.Multistep(TRIG, CLOCK, 3, True),
        "Flow 2 corrected": s.Multistep(FLOW, CLOCK, 2, True),
        "DPM-Solver++ SDE": s.SDE2S(),
        "DPM-Solver++ 2M SDE": s.SDE2M(),
        "DPM-Solver++ 3M SDE": s.SDE3M(),
        **{f"ER-SDE {k}": s.ERSDE(k) for k in (1, 2, 3)},
        "SA-Solver 2": s.SASolver(2),
        "SA-Solver 3, tau=0.5": s.SASolver(3, tau=0.5),
        "Euler-Maruyama": s.EulerMaruyama(),
        "Reverse diffusion": s.ReverseDiffusion(),
        "Annealed Langevin": s.AnnealedLangevin(),
        "Predictor-corrector": s.PredictorCorrector(),
    }


# ---------------------------------------------------------------------- on Gaussian data


def gaussian_error(plan: Plan, means: Tensor = MEANS, variances: Tensor = VARIANCES) -> float:
    """The plan's error on data N(means, variances), element by element, started from the exact marginal.

    Deterministic: the root mean square distance from the exact map x -> alpha_s m + (S_s / S_t) (x - alpha_t m).
    Stochastic: the same of the output's mean and standard deviation from the exact ones.
    """
    (alpha_t, sigma_t), (alpha, sigma) = (plan.schedule.alpha_sigma(t) for t in (plan.start, plan.times[-1]))
    before, after = (alpha_t**2 * variances + sigma_t**2).sqrt(), (alpha**2 * variances + sigma**2).sqrt()
    run = plan.affine(means, variances)
    centre = run.gain * alpha_t * means + run.offset - alpha * means
    if plan.stochastic:
        width = ((run.gain * before) ** 2 + run.noise.square().sum(0)).sqrt() - after
    else:
        width = run.gain * before - after
    return float((centre**2 + width**2).mean().sqrt())


def measured_order(
    solver: Solver,
    schedule: Schedule,
    counts: Sequence[int] = (48, 96, 192),
    low: float = -6.0,
    high: float = 4.0,
    grid: Grid | None = None,
) -> float:
    """The slope of -log error on log n: n intervals uniform in log-SNR from low to high, or on the whole of a grid."""
    times = [_between(schedule, n, low, high) if grid is None else grid.times(schedule, n) for n in counts]
    errors = [gaussian_error(solver.plan(schedule, t)) for t in times]
    return _slope(counts, errors)


def _between(schedule: Schedule, n: int, low: float, high: float) -> Tensor:
    return LogSNR().times(schedule, n, float(schedule.time(low)), float(schedule.time(high)))


def _slope(counts: Sequence[int], errors: Sequence[float]) -> float:
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


def strong_gap(coarse: Plan, fine: Plan, means: Tensor = MEANS, variances: Tensor = VARIANCES) -> float:
    """Root mean square distance of two plans' outputs on data N(means, variances), from one start along one path.

    Every noise interval of `coarse` is cut into the same number of those of `fine`; its standard normal is then
    sum_j sqrt(length_j / length) xi_j, with lengths in the noise angle.
    """
    lengths = [plan.schedule.angle(plan.noise_intervals) for plan in (coarse, fine)]
    before, after = (ends[:, 0] - ends[:, 1] for ends in lengths)
    parts = len(after) // len(before)
    share = (after / before.repeat_interleave(parts)).sqrt().view(-1, *[1] * means.dim())
    a, b = (plan.affine(means, variances) for plan in (coarse, fine))
    alpha, sigma = coarse.schedule.alpha_sigma(coarse.start)
    noise = b.noise - a.noise.repeat_interleave(parts, 0) * share
    gain = b.gain - a.gain
    centre = gain * alpha * means + b.offset - a.offset
    spread = gain**2 * (alpha**2 * variances + sigma**2) + noise.square().sum(0)
    return float((centre**2 + spread).mean().sqrt())


def strong_order(
    solver: Solver, schedule: Schedule, counts: Sequence[int] = (96, 192, 384), low: float = -6.0, high: float = 4.0
) -> float:
    """The slope of -log(strong gap between n and 2n intervals) on log n, uniform in log-SNR from low to high."""
    plans = [solver.plan(schedule, _between(schedule, n, low, high)) for n in (*counts, 2 * counts[-1])]
    return _slope(counts, [strong_gap(a, b) for a, b in itertools.pairwise(plans)])


def variance_bias(solver: Solver, schedule: Schedule, steps: int, variance: float = 0.25) -> float:
    """std of the output / true std - 1 on N(0, variance) from t = 1 with `steps` evaluations."""
    plan = budgeted(solver, schedule, steps, DataScaled(math.sqrt(variance)))
    alpha, sigma = (float(v) for v in schedule.alpha_sigma(plan.times[-1]))
    _, out = plan.law(0.0, variance)
    return math.sqrt(float(out) / (alpha**2 * variance + sigma**2)) - 1


def budgeted(solver: Solver, schedule: Schedule, steps: int, grid: Grid) -> Plan:
    """The plan that `sample` would run for this number of evaluations."""
    solver, intervals = solver.budget(steps, schedule, 1.0)
    return solver.plan(schedule, grid.times(schedule, intervals))


# ---------------------------------------------------------------------- on mixtures in one dimension


class Line:
    """A mixture on the line with its exact probability flow.

    Raises ValueError unless the mixture's events are single numbers and its variances positive.
    """

    def __init__(self, mixture: Mixture, schedule: Schedule):
        if math.prod(mixture.event_shape) != 1 or mixture.degenerate:
            raise ValueError("A line needs a mixture of events of one element with positive variances.")
        self.mixture, self.schedule = mixture, schedule
        self.denoiser = mixture.denoiser(Gaussian(schedule))
        self.weights, self.means = mixture.weights, mixture.means[:, 0]
        self.variances = mixture.eigenvalues.expand(len(self.means), 1)[:, 0]

    @property
    def mean(self) -> float:
        return float(self.weights @ self.means)

    @property
    def std(self) -> float:
        return math.sqrt(float(self.weights @ (self.variances + self.means**2)) - self.mean**2)

    def cdf(self, x: Tensor, t: float) -> Tensor:
        """P(x_t <= x), of x's shape (B, 1)."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        z = (x - alpha * self.means) / (alpha**2 * self.variances + sigma**2).sqrt()
        return torch.special.ndtr(z) @ self.weights[:, None]

    def quantile(self, q: Tensor, t: float) -> Tensor:
        """The inverse of `cdf`, by bisection."""
        alpha, sigma = (float(v) for v in self.schedule.alpha_sigma(t))
        reach = alpha * float(self.means.abs().max()) + 10 * (alpha * float(self.variances.max()) ** 0.5 + sigma)
        low, high = torch.full_like(q, -reach), torch.full_like(q, reach)
        for _ in range(100):
            mid = (low + high) / 2
            below = self.cdf(mid, t) < q
            low, high = torch.where(below, mid, low), torch.where(below, high, mid)
        return (low + high) / 2

    @lru_cache(maxsize=64)  # noqa: B019 - a handful of lines, each asked the same again and again
    def ends(self, n: int, start: float = 1.0, end: float = 0.0) -> tuple[Tensor, Tensor]:
        """(starts, exact ends), (n, 1) each: the midpoints' quantiles of both marginals."""
        q = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
        return self.quantile(q, start), self.quantile(q, end)


@lru_cache(maxsize=16)
def conformance_lines(schedule: Schedule) -> dict[str, Line]:
    """Three mixtures: two modes, three uneven ones, and data much narrower than one."""
    table = {
        "two": ([1, 2], [-1.0, 0.8], [0.1, 0.25]),
        "three": ([1, 2, 3], [-0.9, 0.1, 0.7], [0.05, 0.1, 0.08]),
        "narrow": ([1, 1, 1], [-0.2, 0.0, 0.15], [0.02, 0.01, 0.03]),
    }
    lines = {}
    for name, (weights, means, stds) in table.items():
        w, m, s = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds))
        lines[name] = Line(Mixture(w, m[:, None], s**2), schedule)
    return lines


def relative_error(solver: Sampler, line: Line, steps: int, grid: Grid | None = None, n: int = 256) -> float:
    """Error at `steps` evaluations, relative to that of returning the data's mean for the same starts.

    Deterministic solvers: root mean square distance from the exact end of the same start. Stochastic ones: the same
    after sorting both, which is the Wasserstein distance between the laws (up to the draw of n samples).
    """
    schedule = line.schedule
    solver, intervals = solver.budget(steps, schedule, 1.0)
    times = (grid or DataScaled(line.std)).times(schedule, intervals)
    x1, exact = line.ends(n, 1.0, float(times[-1]))
    out = solver.run(line.denoiser, x1, times, None, Noise.of(0, n))
    if is_stochastic(solver, schedule, times):
        out = out.sort(0).values
    return float(((out - exact).square().mean() / (exact - line.mean).square().mean()).sqrt())


def is_stochastic(solver: Sampler, schedule: Schedule, times: Tensor) -> bool:
    """Whether the sampler draws noise; one that is not a table is taken to."""
    return not isinstance(solver, Solver) or solver.plan(schedule, times).stochastic


# ---------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Row:
    """One line of `backdrift solvers`.

    order: of convergence, as stated, 0 for samplers that have none. measured: the same on each schedule. strong: the
    measured order of a stochastic one's strong error. error: on the mixture of two modes by evaluations, for
    deterministic solvers. bias: by evaluations. None where it does not apply.
    """

    name: str
    order: int
    measured: tuple[float, ...] | None
    strong: float | None
    stochastic: bool
    error: Mapping[int, float] | None
    bias: Mapping[int, float] | None
    largest: float | None


def audit(
    samplers: Mapping[str, Sampler] | None = None,
    schedules: Sequence[Schedule] = (VP(), EDM()),
    steps: Sequence[int] = (5, 10, 20, 50),
) -> list[Row]:
    """Measure every sampler. Errors, biases and the largest coefficient, at 10 evaluations, are on the first schedule.

    About half a second a sampler on one core.
    """
    rows, schedule = [], schedules[0]
    line = conformance_lines(schedule)["two"]
    for name, sampler in (samplers or registered()).items():
        if not isinstance(sampler, Solver):
            rows.append(Row(name, 0, None, None, True, None, None, None))
            continue
        plan = budgeted(sampler, schedule, 10, DataScaled())
        measured = tuple(measured_order(sampler, s) for s in schedules) if sampler.convergence else None
        stochastic = plan.stochastic
        strong = strong_order(sampler, schedule, (48, 96)) if stochastic and sampler.strong else None
        error = None if stochastic else {n: relative_error(sampler, line, n) for n in steps}
        bias = {n: variance_bias(sampler, schedule, n) for n in steps}
        largest = max(float(table.abs().max()) for table in (plan.states, plan.means))
        rows.append(Row(name, sampler.convergence, measured, strong, stochastic, error, bias, largest))
    return rows
