"""After a FAIL: what is to blame, what may help, and whether it did.

What fails on the sampler's rung is the approximation, which particles put right: the sampler's own paths, one of many
taken by its path weight, or twisted particles that are weighted on the way. What fails only with the trained network is
the network's, which no sampler mends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from backdrift.errors import UserError
from backdrift.inverse import DPS, GaussianNoise, LinearMeasurement, PiGDM, Twisted
from backdrift.trust.diagnose import Diagnosis, diagnose
from backdrift.trust.kernel import Kernel
from backdrift.trust.verdict import Verdict
from backdrift.trust.weights import Reweighted

PARTICLES = 16
DRAWS = 400  # of a remedy, which costs as many times more as it has particles


def blame(found: Diagnosis) -> str:
    """The first rung on which what fails goes beyond its limit, or "" where nothing fails."""
    for finding in found.findings:
        if finding.verdict is Verdict.FAIL:
            over = (name for name, value in finding.rungs.items() if abs(value) > finding.limit)
            return next(over, list(found.rungs)[-1])
    return ""


def remedies(found: Diagnosis) -> list[tuple[str, Callable]]:
    """(what it is, the sampler) of what may put this sampler right, the nearest first."""
    measurement, listed = found.problem.measurement, []
    if Kernel.of(found.sampler, found.problem.process, found.steps) is not None:
        words = f"one of {PARTICLES} of its paths, by path weight"
        listed.append((words, Reweighted(base=found.sampler, particles=PARTICLES)))
    linear = isinstance(measurement, LinearMeasurement) and isinstance(measurement.noise, GaussianNoise)
    guide = PiGDM() if linear else DPS()
    words = f"{PARTICLES} twisted particles, guided by {type(guide).__name__}"
    listed.append((words, Twisted(guide=guide, count=PARTICLES)))
    return listed


@torch.no_grad()
def remedied(found: Diagnosis) -> Diagnosis:
    """The diagnosis with the remedy that helps, and the verdict after it; unchanged where nothing failed.

    Remedies are tried in turn until one does not fail; if none, the one with the fewest failures is told. Where the
    network alone is to blame nothing is tried.
    """
    if found.verdict is not Verdict.FAIL or blame(found) == "learned":
        return found
    tried = []
    problem, n = found.problem, min(found.n, DRAWS)
    for words, sampler in remedies(found):
        try:
            after = diagnose(
                sampler,
                problem.prior,
                problem.measurement,
                problem.y,
                process=problem.process,
                learned=found.learned,
                n=n,
                steps=found.steps,
                seed=found.seed,
                alpha=found.alpha,
                limits=found.limits,
                modes=problem.modes,
            )
        except UserError:
            # this one cannot serve the measurement
            continue
        tried.append((words, after))
        if after.verdict is not Verdict.FAIL:
            break
    if not tried:
        return found
    failures = [sum(f.verdict is Verdict.FAIL for f in after.findings) for _, after in tried]
    return replace(found, remedy=tried[failures.index(min(failures))])


def advice(found: Diagnosis) -> str:
    """One sentence on what to do."""
    rung = blame(found)
    if not rung:
        return "Nothing failed; what is inconclusive takes more draws (n)."
    if rung == "learned":
        return "The sampler is not to blame: the trained network is; train it longer, or on more pictures."
    if rung == "integrator":
        return f"The exact score fails in this integrator as well: take more than {found.steps} steps, or another grid."
    if found.remedy is None:
        return "The sampler's approximation is to blame."
    words, after = found.remedy
    helped = "which" if after.verdict is not Verdict.FAIL else "but that still fails:"
    return f"The sampler's approximation is to blame. Tried: {words}, {helped} comes to {after.verdict}."
