"""What every posterior sampler offers, and those that are a denoiser moved towards y, on which any solver runs.

A posterior sampler is a frozen dataclass of choices, called with the problem. Its states carry no memory and its noise
is keyed by sample, so that no draw depends on the batch it is in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.exact.denoiser import ExactDenoiser
from backdrift.guide.gradient import first_informative
from backdrift.inverse.measurement import LinearMeasurement, Measurement
from backdrift.noise import Noise
from backdrift.process.gaussian import Gaussian
from backdrift.sample import sample
from backdrift.sample.grids import Angle, Grid
from backdrift.sample.plan import Step
from backdrift.sample.sde import DDIM
from backdrift.sample.solver import Sampler


class PosteriorSampler(ABC):
    """Draws from p(x_0 | y); subclasses are frozen dataclasses. No sample depends on its neighbours.

    follows: whether the states that `on_step` is shown are meant to follow p(x_t | y), from noise to data.
    """

    follows: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        measurement: Measurement,
        y: Tensor,
        n: int,
        *,
        steps: int,
        noise: Noise,
        on_step: Callable[[Step], None] | None = None,
    ) -> Tensor:
        """n draws, (n, *event), for y (*shape); or one draw for each of n measurements, y (n, *shape).

        denoiser: of the prior, on a Gaussian process. steps: calls of it, guided. noise: of n samples.

        Raises `UserError` where the measurement does not fit the denoiser, y, or the method.
        """

    def check(self, measurement: Measurement) -> None:  # noqa: B027 - most serve any
        """Raises `UserError` for a measurement that this method cannot serve."""


@dataclass(frozen=True, kw_only=True)
class Steered(PosteriorSampler):
    """A posterior sampler that is a rule for a moved denoiser, and a solver that runs on it.

    solver, grid: stochastic by default (the ancestral sampler, DDIM with eta = 1, on the angle grid): a deterministic
    one has no noise to forget an error of the guidance.
    """

    solver: Sampler = field(default_factory=lambda: DDIM(eta=1.0))
    grid: Grid = field(default_factory=Angle)

    @abstractmethod
    def guide(self, denoiser: Denoiser, measurement: Measurement, y: Tensor, noise: Noise | None = None) -> Denoiser:
        """The approximate posterior's denoiser, for any solver and plan. Raises as the call does.

        noise: of the batch that it will see, for rules that draw; by default that of samples 0, 1, .. of seed 0.
        """

    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        guided = self.guide(denoiser, measurement, y, noise.at("guide"))
        x1, _ = begin(denoiser, measurement, y, n, noise)
        return drawn(guided, x1, self.solver, self.grid, steps, noise, on_step)


@kind("posterior.Exact")
@dataclass(frozen=True, kw_only=True)
class Exact(PosteriorSampler):
    """The exact posterior's own denoiser, for exact priors: what every other sampler is measured against.

    solver, grid: as for the samplers that guide. None draws independent samples from the posterior itself.
    """

    solver: Sampler | None = None
    grid: Grid = field(default_factory=Angle)

    def guide(
        self, denoiser: Denoiser, measurement: Measurement, y: Tensor, noise: Noise | None = None
    ) -> ExactDenoiser:
        """The posterior's own denoiser, for one y (*shape), or several that are the same; it draws nothing.

        Raises `UserError` for a network, and for different y: each has a posterior of its own.
        """
        if not isinstance(denoiser, ExactDenoiser):
            raise UserError("The exact posterior is known for exact priors (bd.exact) only, not for a network.")
        y = measurement.batched(y)
        if not bool((y == y[:1]).all()):
            raise UserError("The exact posterior is one of a single measurement: give them one at a time.")
        return denoiser.distribution.given(measurement, y[0]).denoiser(denoiser.process)

    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        guided = self.guide(denoiser, measurement, y)
        if self.solver is None:
            # sample i of a seed is the same in any batch
            return guided.distribution.draw(int(noise.index.max()) + 1, noise.seed)[noise.index]
        x1, _ = begin(denoiser, measurement, y, n, noise)
        return drawn(guided, x1, self.solver, self.grid, steps, noise, on_step)


def begin(denoiser: Denoiser, measurement: Measurement, y: Tensor, n: int, noise: Noise) -> tuple[Tensor, Tensor]:
    """(the states of n samples at t = 1, y with a batch axis, of their dtype and device).

    Raises `UserError` where the denoiser, the measurement, y and the noise do not fit each other.
    """
    if not isinstance(denoiser.process, Gaussian):
        raise UserError(f"Posterior samplers serve a Gaussian process, not {type(denoiser.process).__name__}.")
    measurement.check_events(denoiser.event_shape)
    if n < 1 or len(noise.index) != n:
        raise UserError(f"{n} draws need a Noise of as many samples (1 or more), not of {len(noise.index)}.")
    x1, y = start(denoiser, measurement, n, noise), measurement.batched(y)
    if len(y) not in (1, n):
        raise UserError(f"There are {len(y)} measurements for {n} draws; give one, or one for each.")
    return x1, y.to(x1)


def start(denoiser: Denoiser, measurement: Measurement, n: int, noise: Noise) -> Tensor:
    """The states at t = 1 of n samples: float64 for exact denoisers in float64, else float32, on a network's device."""
    dtype = denoiser.distribution.dtype if isinstance(denoiser, ExactDenoiser) else torch.float32
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
    like = torch.zeros(n, *denoiser.event_shape, dtype=dtype, device=device)
    return denoiser.process.prior(like, noise.at("prior"))


def drawn(
    denoiser: Denoiser,
    x1: Tensor,
    solver: Sampler,
    grid: Grid,
    steps: int,
    noise: Noise,
    on_step: Callable[[Step], None] | None,
) -> Tensor:
    """`bd.sample` of the samples that `noise` names."""
    return sample(
        denoiser, x1, solver=solver, grid=grid, steps=steps, index=noise.index, seed=noise.seed, on_step=on_step
    )


def falling(grid: Grid, process: Gaussian, steps: int) -> Tensor:
    """steps + 1 times from where x_t says something (t = 1, unless alpha(1) = 0) to 0. Raises `UserError` for none."""
    return grid.times(process.schedule, steps, first_informative(process))


def needs_linear(rule: PosteriorSampler, measurement: Measurement, gaussian: bool = True) -> None:
    """Raises `UserError` unless the measurement is linear, with Gaussian noise where `gaussian`."""
    name = type(rule).__name__
    if not isinstance(measurement, LinearMeasurement):
        raise UserError(f"{name} needs a linear measurement; DPS, LGD and DAPS serve any with a gradient.")
    if gaussian:
        measurement.variance(torch.zeros(1, *measurement.shape))


def needs_gradient(rule: PosteriorSampler, measurement: Measurement) -> None:
    """Raises `UserError` for a likelihood without a useful gradient."""
    if not measurement.noise.smooth:
        kind = type(measurement.noise).__name__
        raise UserError(f"{type(rule).__name__} needs a likelihood with a gradient, and {kind} here has none.")
