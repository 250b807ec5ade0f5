"""A network that somebody else trained, as a denoiser.

Trainers disagree on three things only, and a `Convention` states them: the schedule of the corruption, what the network
predicts (a `Target`), and what it is shown and told (a `Clock`). A clock shows the network the state times a number and
tells it the noise in the network's own words: the entry of a table, the noise level, a logarithm of it. Between the
entries of a table the network is told the fraction, so that any solver may evaluate anywhere; on the entries
it is told what it was trained with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.posterior import TensorPosterior, expand
from backdrift.process.gaussian import Gaussian
from backdrift.sample.default import data_scale
from backdrift.schedule import Schedule, as_time
from backdrift.target import Target


class Clock(ABC):
    """What a network is shown and told at time t; subclasses are frozen dataclasses. All numbers are float64."""

    def scale(self, schedule: Schedule, t: float | Tensor) -> Tensor:
        """What the state is multiplied by, of t's shape; 1 unless a clock says otherwise."""
        return torch.ones_like(as_time(t))

    @abstractmethod
    def told(self, schedule: Schedule, t: float | Tensor) -> Tensor:
        """The noise in the network's words, of t's shape."""

    @abstractmethod
    def time(self, schedule: Schedule, told: float | Tensor) -> Tensor:
        """The inverse of `told`."""


@dataclass(frozen=True)
class Entry(Clock):
    """The entry of a table of `count`, counted from 0, which lies at t = (entry + 1) / count.

    Below the first entry, where the table says nothing, the network is told the first.
    """

    count: int

    def told(self, schedule, t):
        return (as_time(t) * self.count - 1).clamp_min(0)

    def time(self, schedule, told):
        return (as_time(told) + 1) / self.count


@dataclass(frozen=True)
class Level(Clock):
    """The noise level sigma / alpha, with the state over alpha: x_0 + level eps, as k-diffusion and EDM have it."""

    def scale(self, schedule, t):
        alpha, _ = schedule.alpha_sigma(t)
        return 1 / alpha

    def told(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        return sigma / alpha

    def time(self, schedule, told):
        return schedule.time(-2 * as_time(told).log())


@dataclass(frozen=True)
class Share(Clock):
    """`count` times the noise's share sigma / (alpha + sigma) of the straight path, as flow models are told."""

    count: int

    def told(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        return self.count * sigma / (alpha + sigma)

    def time(self, schedule, told):
        share = as_time(told) / self.count
        return schedule.time(2 * ((1 - share).log() - share.log()))


@dataclass(frozen=True)
class LogLevel(Clock):
    """log(sigma / alpha) / 4, with the state scaled to unit variance. Karras et al. 2022, arXiv:2206.00364, Table 1."""

    sigma_data: float = 0.5

    def scale(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        return torch.hypot(sigma, alpha * self.sigma_data).reciprocal()

    def told(self, schedule, t):
        # where sigma = 0 no network is needed, but it must not be told an infinity
        return -schedule.logsnr(t).clamp(-60, 60) / 8

    def time(self, schedule, told):
        return schedule.time(-8 * as_time(told))


@dataclass(frozen=True)
class Angle(LogLevel):
    """The angle atan2(sigma, alpha sigma_data), with the state scaled to unit variance, as our `Network` has it."""

    def told(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        return torch.atan2(sigma, alpha * self.sigma_data)

    def time(self, schedule, told):
        return schedule.time(-2 * (as_time(told).tan() * self.sigma_data).log())


@dataclass(frozen=True)
class Convention:
    """How a network was trained: on which corruption, to predict what, being told what."""

    schedule: Schedule
    target: Target
    clock: Clock


class Foreign(Denoiser):
    """A network with a convention of its own as a denoiser.

    net: called as net(x, told, cond) with x (B, C, *space) as the clock scales it and told (B,) float32; returns the
        target's prediction (B, C, *space), or (B, 2 C, *space) whose second half v in [-1, 1] interpolates the two DDPM
        variances in log (Nichol and Dhariwal 2021, arXiv:2102.09672, Eq. 15). cond is a mapping of conditions, never
        None. Its `classes` is the number of labels and `optional` whether a label may be left out.
    sigma_data: standard deviation of the data, from which the default solver and grid take their scale.

    Raises `UserError` if the target cannot be used with the schedule (EPS where alpha(1) = 0).
    """

    def __init__(self, net: nn.Module, convention: Convention, event_shape: tuple[int, ...], sigma_data: float = 0.5):
        super().__init__()
        convention.target.check(convention.schedule)
        if not sigma_data > 0:
            raise UserError(f"sigma_data is the data's standard deviation and must be positive, not {sigma_data}.")
        self.net, self.convention, self.process = net, convention, Gaussian(convention.schedule)
        self.event_shape, self.sigma_data = tuple(event_shape), sigma_data

    @property
    def needs_condition(self) -> bool:
        """Whether the network cannot go without its label or tokens."""
        return not getattr(self.net, "optional", True)

    def forward(self, xt, t, cond=None):
        schedule, clock = self.process.schedule, self.convention.clock
        dtype = next((v.dtype for v in self.net.parameters() if v.is_floating_point()), xt.dtype)
        told = clock.told(schedule, t).to(xt.device, torch.float32).expand(xt.shape[0])
        shown = (expand(clock.scale(schedule, t), xt) * xt).to(dtype)
        p, fraction = self._halves(self.net(shown, told, cond or {}).to(xt.dtype), xt)
        skip, out = self.convention.target.skip_out(schedule, t)
        alpha, sigma = schedule.alpha_sigma(t)
        if bool((sigma == 0).any()):
            # there the state is alpha x_0, whatever the network says
            skip, out = torch.where(sigma == 0, 1 / alpha, skip), torch.where(sigma == 0, 0.0, out)
            p = p.masked_fill(expand(sigma == 0, xt).bool(), 0.0)
        return TensorPosterior(expand(skip, xt) * xt + expand(out, xt) * p, fraction)

    def _halves(self, answer: Tensor, xt: Tensor) -> tuple[Tensor, Tensor | None]:
        """(prediction, fraction of the learned variance or None)."""
        if answer.shape == xt.shape:
            return answer, None
        if answer.shape == (xt.shape[0], 2 * xt.shape[1], *xt.shape[2:]):
            p, v = answer.chunk(2, 1)
            return p, (v + 1) / 2
        raise UserError(
            f"The network returned {tuple(answer.shape)} for states of shape {tuple(xt.shape)}: "
            "it must return that shape, or twice the channels for a learned variance."
        )


def conditions(cond: Mapping, known: tuple[str, ...]) -> None:
    """Raises `UserError` for a condition that the network does not take."""
    for name in cond:
        if name not in known:
            takes = f"takes {' and '.join(known)}" if known else "takes no conditions"
            raise UserError(f"This network {takes}, not {name!r}.")


def mean_at(denoiser: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Mapping | None = None) -> Tensor:
    """E[x_0 | x], (B, *event), for states x = alpha x_0 + sigma eps of any scale; alpha, sigma: (B,) float64.

    The denoiser is asked at its own time of the same noise-to-signal ratio; beyond the ends of its schedule, at the
    end, for the state over its norm.
    """
    schedule, scale = denoiser.process.schedule, data_scale(denoiser)
    t = schedule.time((2 * (alpha.log() - sigma.log())).clamp(-60, 60)).clamp(0, 1)
    ours = schedule.alpha_sigma(t)
    size = torch.hypot(ours[0] * scale, ours[1]) / torch.hypot(alpha * scale, sigma)
    return denoiser(expand(size, x) * x, t, cond).mean


class Restated(nn.Module):
    """A foreign denoiser as a net in this library's words, so that a `Network` can be trained from it.

    Called as net(u, w, cond) with the state u in units of its own spread and the noise angle w, for data of this
    standard deviation; returns what the target `EDM_F` asks for.
    """

    def __init__(self, denoiser: Foreign, std: float):
        super().__init__()
        self.denoiser, self.std = denoiser.requires_grad_(True), std

    def forward(self, u: Tensor, w: Tensor, cond: Mapping | None = None) -> Tensor:
        schedule, w = self.denoiser.process.schedule, w.double().clamp_min(1e-3)
        t = schedule.time(-2 * (w.tan() * self.std).log()).clamp(0, 1)
        alpha, sigma = schedule.alpha_sigma(t)
        mean = self.denoiser(expand(torch.hypot(sigma, alpha * self.std), u) * u, t, cond).mean
        return (mean / self.std - expand(w.cos(), u) * u) / expand(w.sin(), u)
