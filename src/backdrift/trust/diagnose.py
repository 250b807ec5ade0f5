"""The lens: a posterior sampler beside the exact posterior of the same finite data or mixture.

Every error is measured on four rungs, with the same number of draws:

    exact        independent draws of the exact posterior: what is left is the Monte Carlo error, the floor
    integrator   the exact posterior's own denoiser in the sampler's solver and steps: what discretisation adds
    sampler      the sampler, with the prior's exact denoiser: what its approximation adds
    learned      the sampler with a trained denoiser, where one is given: what the network adds

The verdict is on the last rung that there is. `backdrift.trust.verdict` says what PASS and FAIL mean.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.exact import Distribution
from backdrift.inverse.measurement import Measurement
from backdrift.inverse.sampler import Exact
from backdrift.noise import Noise, mix
from backdrift.process import Gaussian
from backdrift.sample.grids import Angle
from backdrift.sample.sde import DDIM
from backdrift.schedule import VP
from backdrift.trust import law
from backdrift.trust.kernel import Kernel
from backdrift.trust.law import Limits, Watch
from backdrift.trust.problem import Draws, Problem
from backdrift.trust.verdict import Effect, Finding, Verdict, decide, overall, skipped

TIMES = 4  # exact reference draws for each of a sampler's
MOST = 1 << 22  # numbers in the reference's states at one time, where it is larger than the draws
ALONE = 4  # draws that are made once more, alone, to see whether they depend on the batch


@dataclass(frozen=True, eq=False)
class Rung:
    """Draws of one rung. pictures: (n, *event). watch: its steps, or None where it shows none. effects: by name."""

    pictures: Tensor
    draws: Draws
    watch: Watch | None
    effects: Mapping[str, Effect]


@dataclass(frozen=True)
class ModeShare:
    """The weight of one mode: exact, as found with its 95 % interval, and as exact draws of the same n find it."""

    name: str
    exact: float
    found: float
    low: float
    high: float
    floor: float


@dataclass(frozen=True, eq=False)
class Spread:
    """Spread over time as ratios to the exact one, 1 where right. times: (J,). ratio, low, high: by view, (J,) each.

    Views: whole, and seen and unseen by a linear measurement.
    """

    times: tuple[float, ...]
    ratio: Mapping[str, Tensor]
    low: Mapping[str, Tensor]
    high: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found. rungs: by name, from "exact" down. reference: further exact draws, four times as many.

    remedy: (its name, the diagnosis after it) or None.
    """

    sampler: object
    problem: Problem
    steps: int
    seed: int
    alpha: float
    limits: Limits
    learned: Denoiser | None
    findings: tuple[Finding, ...]
    rungs: Mapping[str, Rung]
    reference: Draws
    remedy: tuple[str, Diagnosis] | None = None

    @property
    def verdict(self) -> Verdict:
        """FAIL if one finding fails, PASS if all that apply pass, else INCONCLUSIVE."""
        return overall(self.findings)

    @property
    def judged(self) -> Rung:
        """The last rung."""
        return list(self.rungs.values())[-1]

    def finding(self, name: str) -> Finding:
        """One finding by its name."""
        return next(f for f in self.findings if f.name == name)

    @property
    def modes(self) -> tuple[ModeShare, ...]:
        """The weights of the modes."""
        effect, exact = self.judged.effects["weights of the modes"], self.rungs["exact"].draws.modes
        rows = []
        for k, (name, gap, error) in enumerate(zip(effect.parts, effect.values, effect.errors, strict=True)):
            true, floor = float((self.reference.modes == k).double().mean()), float((exact == k).double().mean())
            found, half = true + float(gap), 1.96 * float(error)
            rows.append(ModeShare(name, true, found, max(0.0, found - half), min(1.0, found + half), floor))
        return tuple(rows)

    @property
    def spread(self) -> Spread | None:
        """Spread over time; None for a sampler that does not show its steps."""
        return spread_of(self.judged)

    @property
    def n(self) -> int:
        """Draws on each rung."""
        return len(self.reference) // TIMES

    def lines(self) -> list[str]:
        """The report as text."""
        shown = f"{name_of(self.sampler)}, {self.n} draws, {self.steps} steps, seed {self.seed}"
        rows = [f"{self.verdict}  {shown}", *(finding.line() for finding in self.findings)]
        if self.remedy is not None:
            name, after = self.remedy
            rows.append(f"remedy: {name}: {after.verdict}")
        return rows

    def to_dict(self) -> dict:
        """JSON-able."""
        return {
            "sampler": name_of(self.sampler),
            "verdict": str(self.verdict),
            "n": self.n,
            "steps": self.steps,
            "seed": self.seed,
            "alpha": self.alpha,
            "limits": vars(self.limits),
            "findings": [finding.to_dict() for finding in self.findings],
            "modes": [vars(mode) for mode in self.modes] if "weights of the modes" in self.judged.effects else [],
            "remedy": None if self.remedy is None else {"name": self.remedy[0], **self.remedy[1].to_dict()},
        }

    def to_html(self, path: str | Path) -> Path:
        """Write one page with the pictures that show a failure; returns its path."""
        from backdrift.report.diagnosis import write_diagnosis

        return write_diagnosis(Path(path), self)


@torch.no_grad()
def diagnose(
    sampler: Callable,
    prior: Distribution,
    measurement: Measurement,
    y: Tensor,
    *,
    process: Gaussian | None = None,
    learned: Denoiser | None = None,
    n: int = 2000,
    steps: int = 200,
    seed: int = 0,
    alpha: float = 0.05,
    limits: Limits | None = None,
    modes: Tensor | None = None,
) -> Diagnosis:
    """Compare a posterior sampler with the exact posterior.

    sampler: called as sampler(denoiser, measurement, y, n, steps=, noise=, on_step=); one that takes or calls no
    on_step gets the end-of-run findings alone. prior: of `bd.exact`. y: (*shape). process: of the denoisers; by default
    `learned`'s own, else VP. learned: a trained denoiser of the same data. alpha: at most this share of perfect
    samplers fails. modes: the mode of each component or atom, (K,).

    Raises `UserError` where the parts do not fit each other, no exact posterior is known, or it is a single atom.
    """
    if n < 200:
        raise UserError(f"The lens needs at least 200 draws (2,000 tell more), not {n}.")
    process = process or (Gaussian(VP()) if learned is None else learned.process)
    problem = Problem(prior, measurement, y, process, modes)
    limits = limits or Limits()
    exact = problem.posterior.draw(n, _seed(seed, "exact"))
    pictures = problem.posterior.draw(TIMES * n, _seed(seed, "reference"))
    reference = problem.look(pictures)
    fresh = problem.look(problem.posterior.draw(n, _seed(seed, "fresh")))
    found = problem.look(exact)
    rungs = {"exact": Rung(exact, found, None, _ended(problem, found, fresh, reference, limits))}

    integrator = _integrator(sampler)
    # which rungs there are, and what runs on them
    runs = {"integrator": (integrator, problem.denoiser), "sampler": (sampler, problem.denoiser)}
    if learned is not None:
        runs["learned"] = (sampler, learned)
    if integrator is None:
        del runs["integrator"]
    judged = list(runs)[-1]
    extra: list[Finding] = []
    for name, (one, denoiser) in runs.items():
        watch = Watch(problem, kernel=Kernel.of(one, process, steps))
        x = _run(one, denoiser, problem, n, steps, _seed(seed, name), watch)
        broken = int((~torch.isfinite(x).flatten(1).all(1)).sum())
        if broken:
            reason = f"{broken} of {n} draws on the rung '{name}' are not numbers"
            extra.append(Finding("finite draws", Verdict.FAIL if name == judged else Verdict.NOT_APPLICABLE, reason))
            continue
        draws = problem.look(x)
        # some samplers show states that are not meant to follow the posterior's on the way
        watch = watch if watch.times and getattr(one, "follows", True) else None
        effects = _ended(problem, draws, fresh, reference, limits)
        if watch is not None:
            effects |= _on_the_way(problem, watch, draws, pictures, reference, limits)
        rungs[name] = Rung(x, draws, watch, effects)
    if judged in rungs:
        one, denoiser = runs[judged]
        half = _run(one, denoiser, problem, n, max(1, steps // 2), _seed(seed, "half"), None)
        if bool(torch.isfinite(half).all()) and steps > 1:
            last = rungs[judged]
            moved = law.movement(last.draws, problem.look(half), rungs["exact"].draws, fresh, limits.distance)
            rungs[judged] = replace(last, effects={**last.effects, moved.name: moved})
        extra.append(_alone(one, denoiser, problem, rungs[judged], n, steps, seed))
        extra.append(_budget(rungs[judged].watch, limits))
    return Diagnosis(
        sampler,
        problem,
        steps,
        seed,
        alpha,
        limits,
        learned,
        tuple([*_findings(rungs, judged, alpha, limits), *extra]),
        rungs,
        reference,
    )


def _seed(seed: int, name: str) -> int:
    """A seed of its own for each rung: they must not share their noise, or their errors would be shared as well."""
    return mix(seed ^ mix(sum(ord(c) << 8 * i for i, c in enumerate(name[:7])))) >> 1


def _run(sampler, denoiser: Denoiser, problem: Problem, n: int, steps: int, seed: int, watch: Watch | None) -> Tensor:
    """n draws of any sampler; it is watched where it lets itself be."""
    options = {"steps": steps, "noise": Noise.of(seed, n)}
    if watch is not None and takes(sampler, "on_step"):
        options["on_step"] = watch
    x = sampler(denoiser, problem.measurement, problem.y, n, **options)
    expected = (n, *problem.prior.event_shape)
    if tuple(x.shape) != expected:
        raise UserError(f"The sampler returned draws of shape {tuple(x.shape)}, and {expected} were asked for.")
    return x.detach().cpu()


def takes(function: Callable, name: str) -> bool:
    """Whether a callable has a parameter of this name, or takes any."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _integrator(sampler) -> Exact | None:
    """The exact posterior in the sampler's own solver, or in ancestral steps where it names none."""
    if isinstance(sampler, Exact):
        return None
    solver, grid = getattr(sampler, "solver", None), getattr(sampler, "grid", None)
    return Exact(solver=solver or DDIM(eta=1.0), grid=grid or Angle())


def _ended(problem: Problem, draws: Draws, fresh: Draws, reference: Draws, limits: Limits) -> dict:
    """The effects that finished draws show; fresh: as many exact ones, for the floor of distances."""
    found = (
        law.spreads(draws, reference, problem.seen, limits.spread),
        law.distance(draws, reference, fresh, limits.distance),
        law.shares(draws, reference, problem.groups[1], limits.share),
        *law.hallucinations(draws, reference, limits.share),
        law.fit(draws, reference, limits.fit),
        law.dependence(draws, problem.on_atoms, limits.dependence),
    )
    return {effect.name: effect for effect in found}


def _on_the_way(
    problem: Problem, watch: Watch, draws: Draws, pictures: Tensor, reference: Draws, limits: Limits
) -> dict[str, Effect]:
    """The effects that the steps show; pictures: what the reference looked at."""
    most = max(len(draws), MOST // pictures[0].numel())
    spread = law.spread_over_time(watch, pictures[:most], problem, limits.spread)
    early, _ = law.early_stopping(watch, draws, reference, limits.distance)
    return {spread.name: spread, early.name: early}


def _findings(rungs: Mapping[str, Rung], judged: str, alpha: float, limits: Limits) -> list[Finding]:
    from scipy.stats import t

    if judged not in rungs:
        return []
    effects = rungs[judged].effects
    tests = sum(len(effect.parts) for effect in effects.values())
    critical = float(t.ppf(1 - alpha / (2 * max(1, tests)), law.GROUPS - 1))
    # exact draws have no steps: there the exact score in the same integrator is the floor
    floor, found = {**rungs.get("integrator", rungs["exact"]).effects, **rungs["exact"].effects}, []
    for name, effect in effects.items():
        here = {rung: each.effects[name] for rung, each in rungs.items() if name in each.effects}
        if effect.parts:
            found.append(decide(effect, critical, floor.get(name), here))
        else:
            found.append(skipped(name, "the exact posterior has no spread here"))
    for name in ("spread over time", "early stopping"):
        if name not in effects:
            found.append(skipped(name, "the sampler does not show states that follow p(x_t | y)"))
    return found


def _alone(sampler, denoiser, problem: Problem, rung: Rung, n: int, steps: int, seed: int) -> Finding:
    """Whether a draw is the same without its neighbours."""
    name = "batch"
    again = [_run(sampler, denoiser, problem, ALONE, steps, _seed(seed, "alone"), None) for _ in range(2)]
    if not torch.allclose(*again, rtol=1e-4, atol=1e-4):
        return skipped(name, "the sampler does not repeat its draws for a given noise, so nothing can be compared")
    many = _run(sampler, denoiser, problem, 4 * ALONE, steps, _seed(seed, "alone"), None)[:ALONE]
    scale = float(rung.draws.points.std(0).square().mean().sqrt()) or 1.0
    gap = float((many - again[0]).double().square().mean().sqrt()) / scale
    verdict = Verdict.FAIL if gap > 0.01 else Verdict.PASS
    reason = "the same draws alone and among others" if gap <= 0.01 else "a draw depends on the batch it is in"
    return Finding(name, verdict, reason, gap, gap, gap, 0.0, 0.01)


def _budget(watch: Watch | None, limits: Limits) -> Finding:
    """The divergence of the chain from the exact chain: a bound on everything else."""
    name = "error budget"
    if watch is None or not watch.budget:
        return skipped(name, "this sampler is no chain of Gaussian steps, for which the divergence would be defined")
    nats, error = watch.nats()
    # Pinsker, and Bretagnolle and Huber where that says more
    bound, low, high = (_variation(nats + z * error) for z in (0.0, -1.96, 1.96))
    if high < limits.bound:
        reason = f"{nats:.3g} nats bound the total variation"
        return Finding(name, Verdict.PASS, reason, bound, low, high, 0.0, limits.bound)
    return skipped(name, f"{nats:.3g} nats, a bound too loose to decide by itself")


def _variation(nats: float) -> float:
    nats = max(0.0, nats)
    return min(math.sqrt(nats / 2), math.sqrt(1 - math.exp(-nats)))


def spread_of(rung: Rung) -> Spread | None:
    """A rung's spread over time."""
    if rung.watch is None:
        return None
    effect, views = rung.effects["spread over time"], list(rung.watch.radii[0])
    values = effect.values.view(-1, len(views)).exp().T
    half = (1.96 * effect.errors).view(-1, len(views)).exp().T
    pick = {name: i for i, name in enumerate(views)}
    return Spread(
        tuple(rung.watch.times),
        {name: values[i] for name, i in pick.items()},
        {name: values[i] / half[i] for name, i in pick.items()},
        {name: values[i] * half[i] for name, i in pick.items()},
    )


def name_of(sampler) -> str:
    """A sampler as a reader knows it."""
    own = type(sampler).__name__ if not inspect.isfunction(sampler) else sampler.__name__
    return repr(sampler).replace("backdrift.", "") if hasattr(sampler, "__dataclass_fields__") else own
