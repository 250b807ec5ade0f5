"""How much the error at each noise level counts.

A network's error in x_0 is the same whatever it predicts, so every weight is stated once, on |x_0hat - x_0|^2, and
holds for every target: a target p = a x_0 + b eps with x_0 = skip x_t + out p sees `weight out^2` on its own square
error. The weight changes no optimum, only what a network of finite size cares about, and it means something only
together with the law of the times (`times`): what counts in all is weight times density.

With snr = alpha^2 / sigma^2:

    Simple          1 / out^2: the plain square error of the target
    Bound           -d snr / dt / 2: the variational bound, in nats per element
    TruncatedSNR    max(snr, 1)
    MinSNR          min(snr, gamma)
    SoftMinSNR      snr gamma / (snr + gamma), the smooth version
    P2              snr / (k + snr)^gamma
    EDM             1 / sigma_data^2 + snr
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.schedule import Schedule
from backdrift.target import Target


class Weight(ABC):
    """(schedule, target, t) -> weight of the square distance in x_0; subclasses are frozen dataclasses.

    over_time: True for an integral over t, which times drawn by a density have to be divided by.
    """

    over_time: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        """float64, of t's shape, for sigma > 0."""


def snr(schedule: Schedule, t: float | Tensor) -> Tensor:
    """alpha^2 / sigma^2, of t's shape."""
    alpha, sigma = schedule.alpha_sigma(t)
    return (alpha / sigma) ** 2


@kind("weight.Simple")
@dataclass(frozen=True)
class Simple(Weight):
    """The target's own: the plain mean square error of what the network predicts.  Ho et al. 2020, Eq. 14."""

    def __call__(self, schedule, target, t):
        return target.weight(schedule, t)


@kind("weight.Bound")
@dataclass(frozen=True)
class Bound(Weight):
    """-d snr / dt / 2: the denoising part of the variational bound.  Kingma et al. 2021, arXiv:2107.00630, Eq. 15.

    Like the bound, the loss then does not depend on the schedule between its ends, nor on the law of the times.
    """

    over_time: ClassVar[bool] = True

    def __call__(self, schedule, target, t):
        alpha, sigma = schedule.alpha_sigma(t)
        d_alpha, d_sigma = schedule.rates(t)
        return alpha * (alpha * d_sigma - d_alpha * sigma) / sigma**3


@kind("weight.TruncatedSNR")
@dataclass(frozen=True)
class TruncatedSNR(Weight):
    """max(snr, 1): the larger of the errors in x_0 and in eps.  Salimans and Ho 2022, arXiv:2202.00512, section 4."""

    def __call__(self, schedule, target, t):
        return snr(schedule, t).clamp_min(1)


@kind("weight.MinSNR")
@dataclass(frozen=True)
class MinSNR(Weight):
    """min(snr, gamma): nearly clean pictures count no more than those of snr gamma.

    Hang et al. 2023, arXiv:2303.09556, section 3.4, where it is min(snr, gamma) / snr for EPS and min(snr, gamma) /
    (snr + 1) for V.
    """

    gamma: float = 5.0

    def __post_init__(self):
        _positive(self, "gamma")

    def __call__(self, schedule, target, t):
        return snr(schedule, t).clamp_max(self.gamma)


@kind("weight.SoftMinSNR")
@dataclass(frozen=True)
class SoftMinSNR(Weight):
    """snr gamma / (snr + gamma), a smooth `MinSNR`.  Crowson et al. 2024, arXiv:2401.11605."""

    gamma: float = 4.0

    def __post_init__(self):
        _positive(self, "gamma")

    def __call__(self, schedule, target, t):
        return self.gamma / (1 + self.gamma / snr(schedule, t))


@kind("weight.P2")
@dataclass(frozen=True)
class P2(Weight):
    """snr / (k + snr)^gamma: the plain error of the noise, with less on what only cleans up imperceptible details.

    Choi et al. 2022, arXiv:2204.00227, Eq. 8, on their baseline, the simple loss of EPS.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self):
        _positive(self, "k")
        if not self.gamma >= 0:
            raise UserError(f"P2 needs gamma >= 0, not {self.gamma}.")

    def __call__(self, schedule, target, t):
        ratio = snr(schedule, t)
        return ratio / (self.k + ratio) ** self.gamma


@kind("weight.EDM")
@dataclass(frozen=True)
class EDM(Weight):
    """1 / sigma_data^2 + snr: equal weight for an `EDM_F` of this sigma_data, whatever the network predicts.

    Karras et al. 2022, arXiv:2206.00364, Table 1 (loss weighting), with sigma / alpha for their sigma.
    """

    sigma_data: float = 0.5

    def __post_init__(self):
        _positive(self, "sigma_data")

    def __call__(self, schedule, target, t):
        return self.sigma_data**-2 + snr(schedule, t)


def _positive(weight: Weight, name: str) -> None:
    if not getattr(weight, name) > 0:
        raise UserError(f"{type(weight).__name__} needs a positive {name}, not {getattr(weight, name)}.")
