"""What every sampler offers, and the samplers that compile to plans."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.process.gaussian import Gaussian
from backdrift.sample.plan import Plan, Step
from backdrift.sample.trace import Linear, Tracer
from backdrift.schedule import Schedule


class Sampler(ABC):
    """Anything that turns a start state into a sample: a `Solver`, which is a table, or one that is not."""

    @abstractmethod
    def run(
        self,
        denoiser: Denoiser,
        x1: Tensor,
        times: Tensor,
        cond: Mapping | None = None,
        noise: Noise | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Tensor:
        """A sample for the start states x1 (B, *event) along the falling times (n + 1,)."""

    def budget(self, steps: int, schedule: Schedule | None, start: float) -> tuple[Sampler, int]:
        """This sampler, and the number of grid intervals with which it makes exactly `steps` evaluations."""
        return self, steps


class Solver(Sampler):
    """A sampler for Gaussian processes that is a table: `plan(schedule, times)` compiles it.

    Subclasses are frozen dataclasses that state their `order` of convergence on the probability-flow ODE and write
    their algorithm in `trace`.

    strong: the order of the strong error of those that draw noise, the distance between n and 2n steps along one
    Brownian path. It is 1, measured, also where the law converges faster: a step sees its stretch of the path by its
    increment alone. 0 where the noise follows no path.
    """

    order: int = 1
    strong: int = 1

    @property
    def convergence(self) -> int:
        """The measured order of convergence, where that is not the `order` by which a paper calls its solver."""
        return self.order

    @abstractmethod
    def trace(self, trace: Tracer, x: Linear, schedule: Schedule, times: list[float]) -> Linear:
        """The state at times[-1], from `x` at times[0]."""

    def plan(self, schedule: Schedule, times: Tensor | Sequence[float]) -> Plan:
        """Compile for these falling times in [0, 1]. Raises `UserError` if they are not."""
        times = [float(t) for t in times]
        check_times(times)
        trace = Tracer()
        x = self.trace(trace, trace.start, schedule, times)
        return trace.finish(x, schedule, times[0], times[-1], solver=repr(self))

    def run(self, denoiser, x1, times, cond=None, noise=None, on_step=None):
        if not isinstance(denoiser.process, Gaussian):
            raise UserError(
                f"{type(self).__name__} serves a Gaussian process, not {type(denoiser.process).__name__}: "
                "use bd.solvers.Bridge(), which serves all."
            )
        return self.plan(denoiser.process.schedule, times).run(denoiser, x1, cond, noise, on_step)


def check_times(times: Sequence[float]) -> None:
    """Raises `UserError` unless there are at least two times, within [0, 1], each below the one before."""
    if len(times) < 2:
        raise UserError("A grid needs at least one step, that is two times.")
    if not all(0 <= t <= 1 for t in times):
        raise UserError(f"The times of a grid lie in [0, 1], but one is {next(t for t in times if not 0 <= t <= 1)}.")
    for t, s in itertools.pairwise(times):
        if not s < t:
            raise UserError(f"A grid falls from noise to data, but {t:.6g} is followed by {s:.6g}.")


def check_evaluations(solver: Solver, parts: Sequence[int], steps: int) -> None:
    """Raises `UserError` unless the evaluations that the user gave each part of a run add up to `steps`."""
    if sum(parts) != steps:
        raise UserError(f"{type(solver).__name__} was given {sum(parts)} evaluations, but {steps} were asked for.")
