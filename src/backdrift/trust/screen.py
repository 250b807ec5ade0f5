"""Measurements screened for objects unlike the training data: KLIP and the scores beside it, against one null."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.inverse.measurement import Measurement
from backdrift.inverse.sampler import Exact, Steered
from backdrift.trust.baselines import Found, Reference, baselines
from backdrift.trust.detection import Null
from backdrift.trust.klip import Estimator, Klip, klip


@dataclass(frozen=True)
class Screening:
    """klip: of the measurements. scores: by name, "klip" first. null: where nothing is wrong, by the same names."""

    klip: Klip
    scores: dict[str, Found]
    null: dict[str, Null]

    def p(self, name: str) -> Tensor:
        """Two-sided p-values (N,) of a score."""
        return self.null[name].two_sided(self.scores[name].scores)

    def unusual(self) -> Tensor:
        """KLIP's map in standard deviations of the null's logarithm, (N, *event)."""
        return self.null["klip"].unusual(self.scores["klip"].map)


def screen(
    sampler: Steered | Exact,
    denoiser: Denoiser,
    measurement: Measurement,
    y: Tensor,
    usual: Tensor,
    reference: Reference,
    n: int = 8,
    *,
    steps: int = 20,
    estimator: Estimator | None = None,
    seed: int = 0,
    batch: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> Screening:
    """Scores and p-values of measurements y (N, *shape).

    usual: measurements (M, *shape) of objects like the training data's that were not trained on: `measurement.draw` of
    held-out pictures, or of the model's own samples. They go through the same sampler, so that its errors are in the
    null too. reference: the training pictures. The rest as in `klip`.

    Raises `UserError` where the parts do not fit each other, and for less than 19 usual measurements.
    """
    everything = torch.cat([measurement.batched(y), measurement.batched(usual)])
    found = klip(
        sampler,
        denoiser,
        measurement,
        everything,
        n,
        steps=steps,
        estimator=estimator,
        seed=seed,
        batch=batch,
        on_progress=on_progress,
    )
    scores = {"klip": Found(found.total, found.map)}
    scores |= baselines(found, denoiser, measurement, everything, reference, seed=seed)
    count = len(everything) - len(usual)
    first = {name: Found(s.scores[:count], None if s.map is None else s.map[:count]) for name, s in scores.items()}
    null = {name: Null(s.scores[count:], None if s.map is None else s.map[count:]) for name, s in scores.items()}
    return Screening(Klip(*(getattr(found, name)[:count] for name in Klip.__dataclass_fields__)), first, null)
