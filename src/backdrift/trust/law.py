"""Two laws compared: a sampler's draws, and its states on the way, with the exact posterior's.

Every comparison is an `Effect`: numbers that are 0 for a perfect sampler, in units that a limit can be set in, with
standard errors. Shares are compared as shares; spreads by the mean distance from the centre (a variance would be ruled
by the few draws of a rare mode), as logarithms of ratios; whole laws by the mean Wasserstein-1 distance over directions
in which prior and posterior vary, in units of the posterior's standard deviation there, less what exact draws get.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.sample.plan import Step
from backdrift.trust.kernel import Kernel
from backdrift.trust.problem import Draws, Problem
from backdrift.trust.verdict import Effect

GROUPS = 20  # of the jackknife
RARE = 50  # draws of a mode below which its spread is not looked at


@dataclass(frozen=True)
class Limits:
    """The errors that matter. spread: of a log ratio. distance: of Wasserstein-1, in standard deviations. share: of the
    draws. fit: of the mean log-likelihood, in standard deviations. dependence: of a correlation. bound: on the total
    variation, for the error budget."""

    spread: float = 0.15
    distance: float = 0.15
    share: float = 0.05
    fit: float = 0.25
    dependence: float = 0.15
    bound: float = 0.1


# ---------------------------------------------------------------------------------------------------- finished draws


def spreads(found: Draws, exact: Draws, seen: Tensor | None, limit: float) -> Effect:
    """log of the mean distance from the centre over that of exact draws: whole, seen, unseen, and inside modes."""
    parts = {name: (_radii(part(found.points)), _radii(part(exact.points))) for name, part in _views(seen).items()}
    pairs = {name: _log_ratio(a, b) for name, (a, b) in parts.items() if float(b.mean()) > 1e-9}
    return _effect("spread", {**pairs, **_inside(found, exact)}, limit)


def shares(found: Draws, exact: Draws, names: tuple[str, ...], limit: float) -> Effect:
    """The share of the draws in each mode less the exact one."""
    pairs = {name: _share_gap(found.modes == k, exact.modes == k) for k, name in enumerate(names)}
    return _effect("weights of the modes", pairs, limit)


def hallucinations(found: Draws, exact: Draws, limit: float) -> tuple[Effect, Effect, Effect]:
    """Draws that lie on the prior and contradict y, that fit y and lie off the prior, and that do neither."""
    kinds = {
        "prior-mode hallucination": lambda d: d.contradicts & ~d.off,
        "likelihood-mode hallucination": lambda d: ~d.contradicts & d.off,
        "off both": lambda d: d.contradicts & d.off,
    }
    pairs = {name: _share_gap(kind(found), kind(exact)) for name, kind in kinds.items()}
    return tuple(_effect(name, {"the share of draws": pair}, limit, signed=False) for name, pair in pairs.items())


def fit(found: Draws, exact: Draws, limit: float) -> Effect:
    """The mean of log p(y | x) less that of exact draws, in their standard deviations."""
    a, b = found.fit, exact.fit
    scale = b.std().clamp_min(1e-6)
    error = torch.sqrt(a.var() / len(a) + b.var() / len(b)) / scale
    return _effect("data consistency", {"log p(y | x)": ((a.mean() - b.mean()) / scale, error)}, limit)


def dependence(found: Draws, on_atoms: bool, limit: float) -> Effect:
    """Correlation of each draw with the next, and (without atoms) the share of draws that occur twice."""
    pairs = {}
    centred = found.lines - found.lines.mean(0)
    power = centred.square().mean(0)
    if bool((power > 1e-18).any()):
        line = centred[:, power.argmax()]
        pairs["a draw with the next"] = (line[1:] * line[:-1]).mean() / power.max(), len(line) ** -0.5
    if not on_atoms:
        repeated = 1 - len(found.points.unique(dim=0)) / len(found)
        pairs["the share of repeated draws"] = repeated, len(found) ** -0.5 / 4
    return _effect("independence", pairs, limit)


def distance(found: Draws, exact: Draws, fresh: Draws, limit: float) -> Effect:
    """Wasserstein-1 between draws and exact draws over the lines, less what `fresh` exact draws get."""
    scale = _scale(exact)
    value, error = jackknife(lambda keep: wasserstein(found.lines[keep], exact.ordered) / scale, len(found))
    floor, noise = jackknife(lambda keep: wasserstein(fresh.lines[keep], exact.ordered) / scale, len(fresh))
    # the reference is finite as well
    pair = value - floor, torch.hypot(error, noise) * math.sqrt(1 + len(found) / len(exact))
    return _effect("distance", {"Wasserstein-1": pair}, limit, signed=False)


def movement(found: Draws, half: Draws, exact: Draws, fresh: Draws, limit: float) -> Effect:
    """How far the law moves between half the steps and all, in the same units."""
    scale = _scale(exact)
    moved, error = jackknife(lambda keep: wasserstein(found.lines[keep], half.ordered) / scale, len(found))
    floor, noise = jackknife(lambda keep: wasserstein(exact.lines[keep], fresh.ordered) / scale, len(fresh))
    pair = moved - floor, 2**0.5 * torch.hypot(error, noise)
    return _effect("number of steps", {"half of them": pair}, limit, signed=False)


# ---------------------------------------------------------------------------------------------------- on the way


@dataclass(eq=False)
class Watch:
    """Looks at some of a sampler's steps. An `on_step`.

    rows: how many of the steps. kernel: the sampler's chain, for the error budget, or None. times, radii (per view, the
    draws' distances from their centre), lines (of the state), ends (lines of the predicted x_0): one entry per step
    looked at. budget: (t, nats of that step, their standard error), of the steps with noise.
    """

    problem: Problem
    rows: int = 12
    kernel: Kernel | None = None
    times: list[float] = field(default_factory=list)
    radii: list[dict[str, Tensor]] = field(default_factory=list)
    lines: list[Tensor] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)
    budget: list[tuple[float, float, float]] = field(default_factory=list)

    def __call__(self, step: Step) -> None:
        # a sampler may call its denoiser more often than it makes steps: what it says of its steps counts
        chosen = {round(i * (step.total - 1) / max(1, self.rows - 1)) for i in range(self.rows)}
        if step.n not in chosen or step.t <= 0:
            return
        state, mean = step.state.detach().cpu(), step.mean.detach().cpu()
        points = flat(state).double()
        self.times.append(float(step.t))
        self.radii.append({name: _radii(part(points)) for name, part in _views(self.problem.seen).items()})
        self.lines.append(points @ self.problem.directions)
        self.ends.append(flat(mean).double() @ self.problem.directions)
        if self.kernel is not None and self.kernel.std[step.n] > 0:
            found = self.kernel.divergence(step.n, mean, self.problem.target(state, step.t).mean)
            self.budget.append((float(step.t), float(found.mean()), float(found.std() / len(found) ** 0.5)))

    def nats(self) -> tuple[float, float]:
        """(the whole budget, its standard error): every step looked at stands for its neighbours as well."""
        share = sum(std > 0 for std in self.kernel.std) / len(self.budget)
        return share * sum(nats for _, nats, _ in self.budget), share * math.hypot(*(e for *_, e in self.budget))


def spread_over_time(watch: Watch, draws: Tensor, problem: Problem, limit: float) -> Effect:
    """`spreads` of the states at every time looked at; draws: exact ones of x_0, (n, *event)."""
    pairs = {}
    for t, radii in zip(watch.times, watch.radii, strict=True):
        xt = problem.process.corrupt(draws, t, Noise.of(-5, len(draws)).at("corrupt", len(pairs)))
        for name, part in _views(problem.seen).items():
            pairs[f"{name} at t = {t:.3g}"] = _log_ratio(radii[name], _radii(part(flat(xt).double())))
    return _effect("spread over time", pairs, limit)


def early_stopping(watch: Watch, found: Draws, exact: Draws, limit: float) -> tuple[Effect, Tensor]:
    """How much nearer the exact posterior the predictions were at the best earlier step, and the distances (J,).

    The best step is chosen on half of the draws and judged on the other half.
    """
    scale = _scale(exact)
    curve = torch.stack([wasserstein(ends[::2], exact.ordered) for ends in watch.ends]) / scale
    best = watch.ends[int(curve.argmin())][1::2]
    end = found.lines[1::2]

    def gain(keep: Tensor) -> Tensor:
        return (wasserstein(end[keep], exact.ordered) - wasserstein(best[keep], exact.ordered)) / scale

    value, error = jackknife(gain, len(end))
    return _effect("early stopping", {"the best earlier step": (value, error)}, limit, signed=False), curve


# ---------------------------------------------------------------------------------------------------- numbers


def jackknife(statistic: Callable[[Tensor], Tensor], n: int) -> tuple[Tensor, Tensor]:
    """(statistic of all n, its standard error) by leaving out one of 20 groups at a time (Shao and Tu 1995, 2.3)."""
    groups = torch.arange(n) % GROUPS
    rest = torch.stack([statistic((groups != g).nonzero()[:, 0]) for g in range(GROUPS)])
    variance = (GROUPS - 1) / GROUPS * (rest - rest.mean(0)).square().sum(0)
    return statistic(torch.arange(n)), variance.sqrt()


def wasserstein(a: Tensor, ordered: Tensor) -> Tensor:
    """Mean over lines of Wasserstein-1 between a (n, P) and sorted lines (P, m), at the latter's n mid-quantiles."""
    rank = ((torch.arange(len(a), dtype=torch.float64) + 0.5) / len(a) * ordered.shape[1]).long()
    return (a.mT.contiguous().sort(1).values - ordered[:, rank]).abs().mean()


def _scale(exact: Draws) -> Tensor:
    """The exact draws' standard deviation over the lines: the unit of distances."""
    return exact.lines.std(0).square().mean().sqrt().clamp_min(1e-12)


def _views(seen: Tensor | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """The whole of a state, what the measurement sees of it, and the rest."""
    views = {"whole": lambda x: x}
    if seen is not None:
        views["seen"] = lambda x: x @ seen
        views["unseen"] = lambda x: x - (x @ seen) @ seen.mT
    return views


def _radii(points: Tensor) -> Tensor:
    """Distances (n,) from the centre."""
    return (points - points.mean(0)).norm(dim=1)


def _inside(found: Draws, exact: Draws) -> dict[str, tuple[Tensor, Tensor]]:
    """Spread inside modes: the mean of the modes' log ratios, weighted as the exact posterior has the modes."""
    weights, values, errors = [], [], []
    for k in exact.modes.unique().tolist():
        a, b = found.points[found.modes == k], exact.points[exact.modes == k]
        if min(len(a), len(b)) < RARE or float(_radii(b).mean()) < 1e-9:
            continue
        value, error = _log_ratio(_radii(a), _radii(b))
        weights.append(len(b)), values.append(value), errors.append(error)
    # with one mode it is the whole once more
    if len(exact.modes.unique()) < 2 or not weights:
        return {}
    share = torch.tensor(weights).double() / sum(weights)
    return {"inside modes": (share @ torch.stack(values), (share * torch.stack(errors)).norm())}


def _log_ratio(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(log of mean a over mean b, its standard error), for distances a (n,) and b (m,)."""
    mean_a, mean_b = a.mean().clamp_min(1e-30), b.mean().clamp_min(1e-30)
    parts = a.var() / len(a) / mean_a**2 + b.var() / len(b) / mean_b**2
    return (mean_a / mean_b).log(), parts.sqrt()


def _share_gap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(share of a less share of b, its standard error); with two successes and failures more, 0 of n has one too."""
    parts = []
    for flags in (a, b):
        share = (flags.double().sum() + 2) / (len(flags) + 4)
        parts.append(share * (1 - share) / len(flags))
    return a.double().mean() - b.double().mean(), sum(parts).sqrt()


def _effect(name: str, pairs: dict[str, tuple], limit: float, signed: bool = True) -> Effect:
    values, errors = (torch.tensor([float(pair[i]) for pair in pairs.values()]).double() for i in (0, 1))
    return Effect(name, tuple(pairs), values, errors, limit, signed)
