"""Verdicts: PASS, FAIL, INCONCLUSIVE or NOT APPLICABLE, each with its number, interval, floor and reason.

No sampler on a finite number of steps is exact, so "is it different?" is the wrong question: with enough draws the
answer is always yes. The question is whether an error is larger than a limit that matters:

    FAIL           the whole interval lies beyond the limit, also after allowing for the number of tests (Bonferroni)
    PASS           the whole 95 % interval lies within the limit
    INCONCLUSIVE   it crosses the limit: more draws would tell

A report fails if one finding fails, which for a perfect sampler happens at most at the nominal rate, and passes if all
that apply pass, which needs no allowance (an error beyond its limit passes at most at the nominal rate by itself).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor


class Verdict(str, Enum):
    """What a finding, or a whole report, comes to."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_APPLICABLE = "NOT APPLICABLE"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """One question answered.

    value: the error, 0 where perfect; low, high: its 95 % interval. floor: what exact draws get at the same n. limit:
    the error that matters. rungs: the same error on each rung. All None where the question does not apply.
    """

    name: str
    verdict: Verdict
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    limit: float | None = None
    rungs: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """The finding in one line."""
        if self.value is None:
            return f"{self.verdict:<14} {self.name}: {self.reason}"
        figure = f"{self.value:+.3g} [{self.low:.3g}, {self.high:.3g}]"
        floor = "" if self.floor is None else f", floor {self.floor:+.2g}"
        return f"{self.verdict:<14} {self.name}: {self.reason}  {figure}{floor}, limit {self.limit:g}"

    def to_dict(self) -> dict:
        """JSON-able."""
        return {**vars(self), "verdict": str(self.verdict), "rungs": dict(self.rungs)}


@dataclass(frozen=True, eq=False)
class Effect:
    """An error in several parts (times, modes, directions), each with its standard error.

    parts: their names. values, errors: (parts,) float64; 0 is perfect. limit: the size that matters. signed: whether
    either sign does harm; otherwise only positive values do.
    """

    name: str
    parts: tuple[str, ...]
    values: Tensor
    errors: Tensor
    limit: float
    signed: bool = True

    @property
    def sizes(self) -> Tensor:
        return self.values.abs() if self.signed else self.values

    def worst(self, part: str | None = None) -> int:
        """The part of the largest error."""
        return int(self.sizes.argmax()) if part is None else self.parts.index(part)


def decide(effect: Effect, critical: float, floor: Effect | None = None, rungs: Mapping | None = None) -> Finding:
    """The finding of an effect; critical: standard errors beyond the limit that make a FAIL.

    floor: the effect of exact draws. rungs: the effect on each rung, by name.
    """
    beyond = effect.sizes - critical * effect.errors > effect.limit
    within = effect.sizes + 1.96 * effect.errors < effect.limit
    worst = effect.worst()
    if bool(beyond.any()):
        verdict = Verdict.FAIL
        # of several that fail, the one that is surest
        worst = int(((effect.sizes - effect.limit) / effect.errors.clamp_min(1e-12)).argmax())
        reason = f"{effect.parts[worst]} is off by more than the limit"
    elif bool(within.all()):
        verdict, reason = Verdict.PASS, f"within the limit ({effect.parts[worst]})"
    else:
        worst = int((effect.sizes + 1.96 * effect.errors).argmax())
        verdict, reason = (
            Verdict.INCONCLUSIVE,
            f"the interval crosses the limit ({effect.parts[worst]}); more draws would tell",
        )
    value, error, part = float(effect.values[worst]), float(effect.errors[worst]), effect.parts[worst]
    found = {name: float(e.values[e.worst(part)]) for name, e in (rungs or {}).items() if part in e.parts}
    low = None if floor is None or part not in floor.parts else float(floor.values[floor.worst(part)])
    return Finding(
        effect.name, verdict, reason, value, value - 1.96 * error, value + 1.96 * error, low, effect.limit, found
    )


def skipped(name: str, reason: str) -> Finding:
    """A question that does not apply."""
    return Finding(name, Verdict.NOT_APPLICABLE, reason)


def overall(findings: Sequence[Finding]) -> Verdict:
    """FAIL if one fails, INCONCLUSIVE if one is, PASS if all that apply pass, NOT APPLICABLE if none applies."""
    found = {finding.verdict for finding in findings}
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
    return next((verdict for verdict in order if verdict in found), Verdict.NOT_APPLICABLE)
