"""What to train, in which order, for each way of making a model need few evaluations.

A method is a sequence of stages, each an ordinary training that starts from the weights of the one before. What differs
from the teacher's own training is the objective, the law of the times, and a small constant learning rate under a long
average, because the targets move with the network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.fewstep.consistency import UNIT, ConsistencyDistillation, EasyConsistency
from backdrift.fewstep.continuous import ContinuousConsistency
from backdrift.fewstep.trajectory import Halving, MidTraining, Reflow
from backdrift.objective.base import Objective
from backdrift.objective.times import LogNormalSigma, Times, Uniform


@dataclass(frozen=True)
class Stage:
    """One training. share: of all steps of the distillation."""

    name: str
    objective: Objective
    times: Times
    share: float


class Method(ABC):
    """A way to few steps; subclasses are frozen dataclasses."""

    @abstractmethod
    def stages(self, scale: float, steps: int) -> list[Stage]:
        """The trainings, for data of standard deviation `scale` and a student of `steps` evaluations."""


@kind("distill.Easy")
@dataclass(frozen=True)
class Easy(Method):
    """The recommended way: mid-training on the teacher's paths, then easy consistency tuning on the data.

    middle: the share of the first. Hu et al. 2025, arXiv:2509.24526; Geng et al. 2024, arXiv:2406.14548. guidance: of
    the teacher in the first stage; the second has no teacher, so with guidance it is all mid-training.
    """

    middle: float = 0.3
    base: float = 256.0
    guidance: float = 1.0

    def __post_init__(self):
        if not 0 <= self.middle <= 1:
            raise UserError(f"middle is a share of the steps, from 0 to 1, not {self.middle}.")

    def stages(self, scale, steps):
        middle = 1.0 if self.guidance != 1 else self.middle
        tuning = Stage("tuning", EasyConsistency(self.base), wide(scale), 1 - middle)
        paths = Stage("paths", MidTraining(guidance=self.guidance), Uniform(), middle)
        return [stage for stage in (paths, tuning) if stage.share > 0]


@kind("distill.Discrete")
@dataclass(frozen=True)
class Discrete(Method):
    """Consistency distillation by Heun steps of the teacher. Song et al. 2023, arXiv:2303.01469."""

    guidance: float = 1.0
    grid: int = 18

    def stages(self, scale, steps):
        return [Stage("consistency", ConsistencyDistillation(self.grid, self.guidance), Uniform(), 1.0)]


@kind("distill.Continuous")
@dataclass(frozen=True)
class Continuous(Method):
    """Continuous-time consistency distillation, sCD. Lu and Song 2024, arXiv:2410.11081."""

    guidance: float = 1.0

    def stages(self, scale, steps):
        times = LogNormalSigma(-1.0 + math.log(scale), 1.4)
        return [Stage("continuous", ContinuousConsistency(guidance=self.guidance), times, 1.0)]


@kind("distill.Progressive")
@dataclass(frozen=True)
class Progressive(Method):
    """Progressive distillation: half as many steps each time. Salimans and Ho 2022, arXiv:2202.00512.

    first: the steps of the first student's teacher, a power of two times the last student's.
    """

    guidance: float = 1.0
    first: int = 32

    def stages(self, scale, steps):
        counts, count = [], steps
        while count < self.first:
            counts.append(count)
            count *= 2
        if not counts:
            raise UserError(f"Progressive distillation halves {self.first} steps, so {steps} are no fewer.")
        # only the first teacher needs guidance: its students have learned it
        guided = [self.guidance] + [1.0] * (len(counts) - 1)
        pairs = zip(reversed(counts), guided, strict=True)
        return [Stage(f"halving-{n}", Halving(n, w), Uniform(), 1 / len(counts)) for n, w in pairs]


@kind("distill.Rectified")
@dataclass(frozen=True)
class Rectified(Method):
    """Reflow: training on pairs of noise and what the teacher makes of it. Liu et al. 2023, arXiv:2209.03003."""

    guidance: float = 1.0
    paths: int = 16

    def stages(self, scale, steps):
        return [Stage("reflow", Reflow(self.paths, self.guidance), wide(scale, 0.0, 2.0), 1.0)]


def wide(scale: float, mean: float = -1.1, std: float = 2.0) -> Times:
    """The law of log sigma of Song and Dhariwal 2023, arXiv:2310.14189, Eq. 10, for data of another scale."""
    return LogNormalSigma(mean + math.log(scale / UNIT), std)
