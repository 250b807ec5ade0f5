"""What a network predicts, as one row: p = a x_0 + b eps.

With x_t = alpha x_0 + sigma eps and det = a sigma - b alpha, Cramer's rule gives

    x_0 = skip x_t + out p,      skip = -b / det,      out = sigma / det,

so that |x_0hat - x_0|^2 = out^2 |p_hat - p|^2: conversions between targets, preconditioning and loss weights are this
one rule. Each target states (skip, out) in a closed form that equals the rule inside (0, 1) and stays finite at both
ends wherever the target can express x_0 at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.schedule import Schedule


class Target(ABC):
    """A row (a, b) that may depend on the schedule and the time; subclasses are frozen dataclasses."""

    needs_alpha: bool = False
    """True where x_0 cannot be recovered from p when alpha = 0."""

    @abstractmethod
    def row(self, schedule: Schedule, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) with p = a x_0 + b eps, float64, of t's shape."""

    @abstractmethod
    def skip_out(self, schedule: Schedule, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(skip, out) with x_0 = skip x_t + out p, float64, of t's shape."""

    def weight(self, schedule: Schedule, t: float | Tensor) -> Tensor:
        """1 / out^2: turns |x_0hat - x_0|^2 into |p_hat - p|^2. Infinite where out = 0."""
        _, out = self.skip_out(schedule, t)
        return out**-2

    def check(self, schedule: Schedule) -> None:
        """Raises `UserError` if this target cannot express x_0 somewhere on the schedule."""
        alpha, _ = schedule.alpha_sigma(1.0)
        if self.needs_alpha and alpha == 0:
            raise UserError(
                f"{type(self).__name__} cannot recover x_0 at t = 1, where {type(schedule).__name__} has alpha = 0: "
                "predict X0, V or VELOCITY instead."
            )


@kind("target.X0")
@dataclass(frozen=True)
class X0(Target):
    """p = x_0, the data."""

    def row(self, schedule, t):
        alpha, _ = schedule.alpha_sigma(t)
        return torch.ones_like(alpha), torch.zeros_like(alpha)

    def skip_out(self, schedule, t):
        alpha, _ = schedule.alpha_sigma(t)
        return torch.zeros_like(alpha), torch.ones_like(alpha)


@kind("target.EPS")
@dataclass(frozen=True)
class EPS(Target):
    """p = eps, the noise. Ho et al. 2020, arXiv:2006.11239, Eq. 14."""

    needs_alpha = True

    def row(self, schedule, t):
        alpha, _ = schedule.alpha_sigma(t)
        return torch.zeros_like(alpha), torch.ones_like(alpha)

    def skip_out(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        return 1 / alpha, -sigma / alpha


@kind("target.V")
@dataclass(frozen=True)
class V(Target):
    """p = alpha eps - sigma x_0. Salimans and Ho 2022, arXiv:2202.00512, section 4."""

    def row(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        return -sigma, alpha

    def skip_out(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        square = alpha**2 + sigma**2
        return alpha / square, -sigma / square


@kind("target.VELOCITY")
@dataclass(frozen=True)
class VELOCITY(Target):
    """p = alpha' x_0 + sigma' eps, the velocity of the path. Lipman et al. 2023, arXiv:2210.02747, Eq. 9 and 13."""

    def row(self, schedule, t):
        return schedule.rates(t)

    def skip_out(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        d_alpha, d_sigma = schedule.rates(t)
        det = d_alpha * sigma - d_sigma * alpha
        # where sigma = 0 its rate may be infinite; the limit is x_0 = x_t / alpha on every schedule
        clean = sigma == 0
        return torch.where(clean, 1 / alpha, -d_sigma / det), torch.where(clean, 0.0, sigma / det)


@kind("target.SCORE")
@dataclass(frozen=True)
class SCORE(Target):
    """p = -eps, whose conditional mean is sigma times the score of x_t.

    The network's output over sigma is the score, so that it need not span the orders of magnitude of 1 / sigma (Song
    and Ermon 2020, arXiv:2006.09011, Technique 3), and the plain square error of p is score matching weighted by
    sigma^2 (Song and Ermon 2019, arXiv:1907.05600, Eq. 6). In these units it is EPS with the sign turned.
    """

    needs_alpha = True

    def row(self, schedule, t):
        alpha, _ = schedule.alpha_sigma(t)
        return torch.zeros_like(alpha), -torch.ones_like(alpha)

    def skip_out(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        return 1 / alpha, sigma / alpha


@kind("target.EDM_F")
@dataclass(frozen=True)
class EDM_F(Target):
    """EDM's preconditioned target: unit variance at every noise level for data of standard deviation `sigma_data`.

    With S^2 = sigma^2 + alpha^2 sigma_data^2: a = sigma / (sigma_data S), b = -alpha sigma_data / S.
    Karras et al. 2022, arXiv:2206.00364, Table 1 and Eq. 7, extended to alpha != 1.
    """

    sigma_data: float = 0.5

    def row(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        norm = (sigma**2 + (alpha * self.sigma_data) ** 2).sqrt()
        return sigma / (self.sigma_data * norm), -alpha * self.sigma_data / norm

    def skip_out(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        square = sigma**2 + (alpha * self.sigma_data) ** 2
        return alpha * self.sigma_data**2 / square, sigma * self.sigma_data / square.sqrt()
