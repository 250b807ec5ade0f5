"""What to train, in which order, for each way of making a model need few evaluations.

A method is a sequence of stages, each an ordinary training that starts from the weights of the one before. What differs
from the teacher's own training is the objective, the law of the times, and how the learning rate falls.
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
from backdrift.objective.times import Angle, LogNormalSigma, Times, Uniform


@dataclass(frozen=True)
class Stage:
    """One training. share: of all steps of the distillation.

    settles: the targets are the teacher's own, so the rate starts at the teacher's and falls to nothing. Else they move
    with the network, and a third of that rate stays, under a longer average.
    """

    name: str
    objective: Objective
    times: Times
    share: float = 1.0
    settles: bool = False


class Method(ABC):
    """A way to few steps; subclasses are frozen dataclasses."""

    @abstractmethod
    def stages(self, scale: float, steps: int) -> list[Stage]:
        """The trainings, for data of standard deviation `scale` and a student of `steps` evaluations."""


@kind("distill.Paths")
@dataclass(frozen=True)
class Paths(Method):
    """The recommended way: regression from every state on the teacher's paths to where they end, and nothing else.

    guidance: of the teacher; with `guidance_to` a range, from which the student is asked for any weight when it
    samples. Hu et al. 2025, arXiv:2509.24526, whose first stage it is.
    """

    guidance: float = 1.0
    guidance_to: float | None = None

    def stages(self, scale, steps):
        objective = MidTraining(guidance=self.guidance, guidance_to=self.guidance_to)
        return [Stage("paths", objective, Uniform(), settles=True)]


@kind("distill.Single")
@dataclass(frozen=True)
class Single(Method):
    """One training under any objective, with times even over the noise angles.

    settles: whether its targets are fixed (see `Stage`).
    """

    objective: Objective
    settles: bool = False

    def stages(self, scale, steps):
        return [Stage("single", self.objective, Angle(scale), settles=self.settles)]


@kind("distill.Easy")
@dataclass(frozen=True)
class Easy(Method):
    """Mid-training on the teacher's paths, then easy consistency tuning on the data, for large budgets.

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
        paths = Stage("paths", MidTraining(guidance=self.guidance), Uniform(), middle, settles=True)
        return [stage for stage in (paths, tuning) if stage.share > 0]


@kind("distill.Discrete")
@dataclass(frozen=True)
class Discrete(Method):
    """Consistency distillation by Heun steps of the teacher. Song et al. 2023, arXiv:2303.01469.

    guidance, guidance_to: as in `Paths`; with a range it is a latent consistency model's (arXiv:2310.04378).
    """

    guidance: float = 1.0
    grid: int = 18
    guidance_to: float | None = None

    def stages(self, scale, steps):
        objective = ConsistencyDistillation(self.grid, self.guidance, guidance_to=self.guidance_to)
        return [Stage("consistency", objective, Uniform())]


@kind("distill.Continuous")
@dataclass(frozen=True)
class Continuous(Method):
    """Continuous-time consistency distillation, sCD. Lu and Song 2024, arXiv:2410.11081."""

    guidance: float = 1.0

    def stages(self, scale, steps):
        times = LogNormalSigma(-1.0 + math.log(scale), 1.4)
        return [Stage("continuous", ContinuousConsistency(guidance=self.guidance), times)]


@kind("distill.Progressive")
@dataclass(frozen=True)
class Progressive(Method):
    """Progressive distillation: half as many steps each time. Salimans and Ho 2022, arXiv:2202.00512.

    first: the steps of the first student's teacher, a power of two times the last student's. guidance, guidance_to: as
    in `Paths`.
    """

    guidance: float = 1.0
    first: int = 32
    guidance_to: float | None = None

    def stages(self, scale, steps):
        counts, count = [], steps
        while count < self.first:
            counts.append(count)
            count *= 2
        if not counts:
            raise UserError(f"Progressive distillation halves {self.first} steps, so {steps} are no fewer.")
        # only the first teacher needs guidance: its students have learned it
        stages = []
        for k, n in enumerate(reversed(counts)):
            weight = 1.0 if k and self.guidance_to is None else self.guidance
            told = self.guidance_to is not None
            objective = Halving(n, weight, self.guidance_to, heeded=bool(k) and told)
            stages.append(Stage(f"halving-{n}", objective, Uniform(), 1 / len(counts), settles=True))
        return stages


@kind("distill.Rectified")
@dataclass(frozen=True)
class Rectified(Method):
    """Reflow: training on pairs of noise and what the teacher makes of it. Liu et al. 2023, arXiv:2209.03003."""

    guidance: float = 1.0
    paths: int = 16

    def stages(self, scale, steps):
        return [Stage("reflow", Reflow(self.paths, self.guidance), wide(scale, 0.0, 2.0), settles=True)]


def wide(scale: float, mean: float = -1.1, std: float = 2.0) -> Times:
    """The law of log sigma of Song and Dhariwal 2023, arXiv:2310.14189, Eq. 10, for data of another scale."""
    return LogNormalSigma(mean + math.log(scale / UNIT), std)
