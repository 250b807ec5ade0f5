"""A plan tuned to one model and one budget: gradient descent on the table.

Any deterministic plan is, written out in the start noise and the denoiser's answers D_0, D_1, ...,

    y_n = alpha_n sum_{j<n} W_nj D_j + sigma_n g_n eps,      eps = x_1 / sigma_1,

with W_nj summing to about 1 and g_n about 1. These numbers and the times are the parameters. They start from the best
of a few hand-made plans, one of them on a searched grid (search.py), and are moved by Adam to bring the output near a
fine reference from the same noise. The answers of late steps are nearly equal, so what is stored are the running sums
of W_n0, W_n1, ..., which multiply their differences; the times are stored as logarithms of their gaps, so they stay in
order. Related: bespoke solvers (Shaul et al. 2023, arXiv:2310.19075).

A few trajectories end in another mode than the reference, and in a mean of squares they would decide alone; the loss
is quadratic up to the median error of the start plan and linear beyond.

The tuned plan is judged on fresh noises. If it is not at least as good there as the best hand-made plan, in the median
and in the root mean square, that plan is returned instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.exact import Atoms
from backdrift.noise import Noise
from backdrift.process.gaussian import Gaussian
from backdrift.sample.default import LAST, AdamsFlow, clock_scale, default_grid, default_solver
from backdrift.sample.grids import DataScaled
from backdrift.sample.ode import DPMpp
from backdrift.sample.plan import Plan
from backdrift.sample.search import searched_grid

FINE = 40  # evaluations of the reference where no exact flow is known
MOST = 24  # evaluations of a tuned plan: with more, the reference would be hardly finer
BATCH = 1024  # noises in one call of the denoiser


@dataclass(frozen=True)
class Effort:
    """How much work tuning is. noises: to train on, and as many to judge. batch: per step. steps: of Adam."""

    noises: int = 4096
    batch: int = 512
    steps: int = 1500
    rate: float = 0.01

    def __post_init__(self):
        if min(self.noises, self.batch, self.steps) < 1 or not self.rate > 0:
            raise UserError(
                "Tuning needs at least 1 noise, 1 a batch, 1 update and a rate > 0, "
                f"not {self.noises}, {self.batch}, {self.steps} and {self.rate:g}."
            )

    @classmethod
    def of(cls, denoiser: Denoiser) -> Effort:
        """A minute for exact distributions; a few minutes for a network of a million parameters on small pictures."""
        return cls(256, 16, 600) if any(True for _ in denoiser.parameters()) else cls()


@dataclass(frozen=True)
class Error:
    """Distance from the reference: median and root mean square over trajectories, in units of a coordinate."""

    median: float
    rms: float

    @classmethod
    def of(cls, out: Tensor, reference: Tensor) -> Error:
        gap = (out - reference).flatten(1).double().square().mean(1)
        return cls(float(gap.median().sqrt()), float(gap.mean().sqrt()))

    @property
    def score(self) -> float:
        return self.median * self.rms


@dataclass(frozen=True)
class Task:
    """Start states (B, *event), their conditions, and the ends of a fine run from them."""

    x1: Tensor
    cond: Mapping | None
    end: Tensor

    def run(self, denoiser: Denoiser, plan: Plan) -> Tensor:
        """The plan's outputs, (B, *event)."""
        return _run(denoiser, plan, self.x1, self.cond)

    def error(self, denoiser: Denoiser, plan: Plan) -> Error:
        return Error.of(self.run(denoiser, plan), self.end)

    def part(self, index: Tensor) -> Task:
        return Task(self.x1[index], _rows(self.cond, index), self.end[index])


@dataclass(frozen=True)
class Tuned:
    """plan: the best. improved: whether it is the tuned one. hand_made: the plans it is compared with, by name.

    rival: the best of these. errors: of all and of "tuned", on the noises of `fresh`.
    """

    plan: Plan
    improved: bool
    rival: str
    hand_made: Mapping[str, Plan]
    errors: Mapping[str, Error]
    fresh: Task

    def lines(self) -> list[str]:
        """The outcome in words, one line per plan."""
        out = [f"{name:<34} median {e.median:.2e}   rms {e.rms:.2e}" for name, e in self.errors.items()]
        after, before = self.errors["tuned"], self.errors[self.rival]
        if self.improved:
            words = f"tuned: {after.median / before.median:.2f} times the median, {after.rms / before.rms:.2f} the rms"
        else:
            words = "tuning did not improve both figures on fresh noises: the hand-made plan is kept"
        return [*out, f"{words} ({self.rival}; {len(self.fresh.x1)} fresh noises)"]


def tune(
    denoiser: Denoiser, nfe: int, *, cond: Mapping | None = None, seed: int = 0, effort: Effort | None = None
) -> Plan:
    """The best plan of `nfe` evaluations for this denoiser; see `tuned`, which also says how good it is."""
    return tuned(denoiser, nfe, cond=cond, seed=seed, effort=effort).plan


def tuned(
    denoiser: Denoiser,
    nfe: int,
    *,
    cond: Mapping | None = None,
    seed: int = 0,
    effort: Effort | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tuned:
    """Tune a plan of `nfe` evaluations and judge it on fresh noises.

    denoiser: any of a Gaussian process; a guided one gives a plan bound to its weight. cond: conditions (C, ...) each,
    used in turn for the noises. on_step: called with (step, steps).

    Raises `UserError` for another process, or a number of evaluations that is not 1 to `MOST`.
    """
    check_budget(nfe)
    if not isinstance(denoiser.process, Gaussian):
        raise UserError(f"Plans are tuned for Gaussian processes, not {type(denoiser.process).__name__}.")
    effort = effort or Effort.of(denoiser)
    train, fresh = (_task(denoiser, cond, seed, name, effort) for name in ("tune", "judge"))
    plans = hand_made(denoiser, nfe, train)
    start = min(plans, key=lambda name: train.error(denoiser, plans[name]).score)
    plan = _descend(denoiser, plans[start], train, effort, seed, on_step)
    errors = {name: fresh.error(denoiser, p) for name, p in {**plans, "tuned": plan}.items()}
    # the best hand-made plan on the fresh noises themselves: the harder comparison
    best = min(plans, key=lambda name: errors[name].score)
    after, before = errors["tuned"], errors[best]
    improved = after.median <= before.median and after.rms <= before.rms
    chosen = plan if improved else plans[best]
    weight = getattr(denoiser, "guidance", None)
    chosen = chosen if weight is None else chosen.with_guidance(weight)
    return Tuned(chosen, improved, best, plans, errors, fresh)


def check_budget(nfe: int) -> None:
    """Raises `UserError` unless a plan of so many evaluations can be tuned."""
    if not 1 <= nfe <= MOST:
        raise UserError(f"A plan is tuned for 1 to {MOST} evaluations, not {nfe}; with more, use the default sampler.")


def _task(denoiser: Denoiser, cond: Mapping | None, seed: int, name: str, effort: Effort) -> Task:
    index = torch.arange(effort.noises)
    reference = next((v for v in (*denoiser.parameters(), *denoiser.buffers()) if v.is_floating_point()), None)
    # exact distributions have no parameters and compute in float64
    like = torch.empty(
        len(index),
        *denoiser.event_shape,
        dtype=torch.float64 if reference is None else torch.float32,
        device="cpu" if reference is None else reference.device,
    )
    x1 = denoiser.process.prior(like, Noise.of(seed, len(index)).at(name))
    if cond:
        count = len(next(iter(cond.values())))
        cond = {key: value[index % count].to(like.device) for key, value in cond.items()}
    return Task(x1, cond or None, _reference(denoiser, x1, cond or None))


@torch.no_grad()
def _reference(denoiser: Denoiser, x1: Tensor, cond: Mapping | None) -> Tensor:
    if hasattr(denoiser, "flow"):
        return denoiser.flow(x1, 1.0, 0.0, cond, steps=100)
    schedule = denoiser.process.schedule
    plan = default_solver(denoiser).plan(schedule, default_grid(denoiser).times(schedule, FINE))
    return _run(denoiser, plan, x1, cond)


@torch.no_grad()
def _run(denoiser: Denoiser, plan: Plan, x1: Tensor, cond: Mapping | None) -> Tensor:
    parts = torch.arange(len(x1)).split(BATCH)
    return torch.cat([plan.run(denoiser, x1[part], _rows(cond, part)) for part in parts])


def _rows(cond: Mapping | None, index: Tensor) -> Mapping | None:
    return None if cond is None else {name: value[index] for name, value in cond.items()}


def hand_made(denoiser: Denoiser, nfe: int, task: Task) -> dict[str, Plan]:
    """The plans from which tuning starts, and with which it is compared, by name."""
    schedule = denoiser.process.schedule
    found = {"default": default_solver(denoiser).plan(schedule, default_grid(denoiser).times(schedule, nfe))}
    for factor in (0.7, 1.4):
        scale = factor * clock_scale(denoiser)
        times = DataScaled(scale, LAST).times(schedule, nfe)
        found[f"default at {factor:g} of its scale"] = AdamsFlow(scale).plan(schedule, times)
    few = task.part(torch.arange(min(64, len(task.x1))))
    times = searched_grid(denoiser, few.x1, nfe, few.cond).times(schedule, nfe)
    found["default solver, searched grid"] = default_solver(denoiser).plan(schedule, times)
    found["DPM-Solver++(2M), searched grid"] = DPMpp(2).plan(schedule, times)
    return found


def _descend(
    denoiser: Denoiser,
    plan: Plan,
    task: Task,
    effort: Effort,
    seed: int,
    on_step: Callable[[int, int], None] | None,
) -> Plan:
    """Adam from `plan`, with a rate that falls to zero as a cosine."""
    table = Table.of(plan)
    delta = task.error(denoiser, plan).median
    parameters = [table.sums.requires_grad_(), table.gains.requires_grad_()]
    if not isinstance(getattr(denoiser, "distribution", None), Atoms):  # atoms can be differentiated in x_t alone
        parameters.append(table.gaps.requires_grad_())
    adam = torch.optim.Adam(parameters, lr=effort.rate, betas=(0.9, 0.99))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, effort.steps)
    generator = torch.Generator().manual_seed(seed % 2**63)
    for n in range(effort.steps):
        chosen = torch.randint(len(task.x1), (min(effort.batch, len(task.x1)),), generator=generator)
        part = task.part(chosen)
        gap = (table.run(denoiser, part.x1, part.cond) - part.end).flatten(1).double().square().mean(1)
        loss = (1 + gap / delta**2).sqrt().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        fall.step()
        if on_step is not None:
            on_step(n + 1, effort.steps)
    return table.plan()


@dataclass(frozen=True)
class Table:
    """A deterministic plan as numbers to be moved (see the module). All float64.

    gaps: (N,), logarithms of the steps in t, up to a constant. sums: (N + 1, N), running sums of W along a row; what
    lies on or above the diagonal is not used. gains: (N + 1,), g.
    """

    origin: Plan
    gaps: Tensor
    sums: Tensor
    gains: Tensor

    @classmethod
    def of(cls, plan: Plan) -> Table:
        """Raises `UserError` for a stochastic plan."""
        if plan.stochastic:
            raise UserError("A stochastic plan cannot be tuned: start from a deterministic one.")
        alpha, sigma = plan.schedule.alpha_sigma(plan.times)
        count = plan.evaluations
        # every row in nothing but x_1 and the means
        rows = torch.zeros(count + 1, count + 1, dtype=torch.float64)
        for n in range(count + 1):
            rows[n] = plan.states[n, 1:] @ rows[:count]
            rows[n, 0] += plan.states[n, 0]
            rows[n, 1:] += plan.means[n]
        weights = torch.where(alpha[:, None] > 0, rows[:, 1:] / alpha[:, None], 0.0)
        gains = torch.where(sigma > 0, rows[:, 0] * sigma[0] / sigma, rows[:, 0])
        return cls(plan, (-plan.times.diff()).log(), weights.cumsum(1), gains)

    def times(self) -> Tensor:
        """(N + 1,), from the plan's start to its end."""
        # the ends stay constants: sigma = sqrt(...) has no derivative where it is 0
        first, last = self.origin.times[:1], self.origin.times[-1:]
        inner = first + (last - first) * self.gaps.softmax(0).cumsum(0)[:-1]
        return torch.cat([first, inner, last])

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """(times, what multiplies x_1 (N + 1,), what multiplies the means (N + 1, N))."""
        times = self.times()
        alpha, sigma = self.origin.schedule.alpha_sigma(times)
        weights = torch.cat([self.sums[:, :1], self.sums.diff(dim=1)], 1).tril(-1)
        # at sigma = 0 a gain is the remainder of x_1 itself
        level = torch.where(sigma > 0, sigma / sigma[0], 1.0)
        return times, self.gains * level, weights * alpha[:, None]

    def run(self, denoiser: Denoiser, x1: Tensor, cond: Mapping | None) -> Tensor:
        """The output, differentiable in the parameters."""
        times, keep, means = self.rows()
        answers: list[Tensor] = []
        for n in range(len(times)):
            y = keep[n].to(x1.dtype) * x1
            for weight, D in zip(means[n, :n].to(x1.dtype), answers, strict=True):
                y = y + weight * D
            if n < len(times) - 1:
                answers.append(denoiser(y, times[n], cond).mean.to(x1.dtype))
        return y

    @torch.no_grad()
    def plan(self) -> Plan:
        times, keep, means = self.rows()
        states = torch.zeros_like(self.origin.states)
        states[:, 0] = keep
        name = f"tuned from {self.origin.solver}"
        none = self.origin.noise
        return Plan(times, states, means, none, self.origin.noise_intervals, self.origin.schedule, solver=name)
