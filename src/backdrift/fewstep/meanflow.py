"""Flow maps from data alone: mean flow, alpha-flow and shortcuts. `flowmap` has the identities behind them.

Each mixes two kinds of samples: those with rho = tau learn the velocity, as in flow matching, and those with rho < tau
learn the average over the stretch between, from what the network already says about shorter ones. A loss's value is
no measure of progress for the second kind, whose target moves with the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.fewstep.flowmap import TOLD, FlowMap, Scene, check_network, matched, scenes, sized, together
from backdrift.fewstep.tangent import Exact, Tangent
from backdrift.objective.base import Losses, Objective
from backdrift.posterior import expand


class FromData(Objective):
    """What the three have in common: they train a flow map, and nothing beside it."""

    @property
    def told(self):
        return TOLD

    def head(self, network):
        check_network(network, self)
        return super().head(network)


@kind("objective.MeanFlow")
@dataclass(frozen=True)
class MeanFlow(FromData):
    """|m + (tau - rho) sg(dm/dtau) - (eps - y)|^2, each sample's divided by its own size.

    improved: dm/dtau is taken along the velocity that the network itself gives, so that no noise of the data is
    multiplied with a derivative (Geng et al. 2025, arXiv:2512.02012); else along eps - y (Geng et al. 2025,
    arXiv:2505.13447, Algorithm 1). share: of the samples with rho < tau. power, constant: of the sizes.
    """

    improved: bool = True
    share: float = 0.5
    power: float = 1.0
    constant: float = 1e-2
    tangent: Tangent = field(default_factory=Exact)

    def __post_init__(self):
        check_share(self.share)
        if not (0 <= self.power <= 1 and self.constant > 0):
            raise UserError("MeanFlow needs a power from 0 to 1 and a positive constant.")

    def losses(self, network, head, samples):
        apart, level = scenes(network, samples, self.share)

        def missed(miss: Callable[[Scene], Tensor]):
            return lambda scene: sized(miss(scene), self.power, self.constant)

        return together((level, missed(from_path)), (apart, missed(self._average)))

    def _average(self, scene: Scene) -> Tensor:
        z = scene.state_at(scene.tau)
        speed = scene.map.speed(z, scene.tau, scene.rho)
        along = scene.velocity
        if self.improved:
            with torch.no_grad(), scene.again():
                along = scene.map.speed(z, scene.tau)
        with scene.again():
            rise = scene.map.rise(self.tangent, z, scene.tau, scene.rho, along)
        return eulerian(speed, rise, scene.tau - scene.rho, scene.velocity)


def from_path(scene: Scene) -> Tensor:
    """What the velocity misses that of the path by: flow matching."""
    return matched(scene, scene.velocity)


def eulerian(speed: Tensor, rise: Tensor, gap: Tensor, velocity: Tensor) -> Tensor:
    """m + gap dm/dtau - velocity: 0 for the flow's map along its own velocity."""
    return speed + expand(gap, speed) * rise - velocity


@kind("objective.AlphaFlow")
@dataclass(frozen=True)
class AlphaFlow(FromData):
    """From flow matching to mean flow as alpha falls from 1 to `least`, without a derivative of the network.

        target = alpha v + (1 - alpha) m(z - alpha (tau - rho) v, tau - alpha (tau - rho), rho),      v = eps - y

    alpha is a sigmoid of the training's progress, of this slope around its `middle`; the square distance is divided by
    it. Zhang et al. 2025, arXiv:2510.20771.
    """

    share: float = 0.5
    least: float = 0.02
    middle: float = 0.5
    slope: float = 12.0
    power: float = 1.0
    constant: float = 1e-2

    def __post_init__(self):
        check_share(self.share)
        if not (0 < self.least <= 1 and 0 <= self.power <= 1 and self.constant > 0):
            raise UserError("AlphaFlow needs 0 < least <= 1, a power from 0 to 1 and a positive constant.")

    def alpha(self, progress: Tensor) -> Tensor:
        """alpha after this share of the training, (B,)."""
        return torch.sigmoid(self.slope * (self.middle - progress)).clamp_min(self.least)

    def losses(self, network, head, samples):
        apart, level = scenes(network, samples, self.share)
        return together(
            (level, lambda scene: sized(from_path(scene), self.power, self.constant)), (apart, self._average)
        )

    def _average(self, scene: Scene) -> Losses:
        z, v, alpha = scene.state_at(scene.tau), scene.velocity, self.alpha(scene.progress)
        speed = scene.map.speed(z, scene.tau, scene.rho)
        with torch.no_grad(), scene.again():
            target = alpha_target(scene.map, z, scene.tau, scene.rho, v, alpha)
        # over alpha it is of the size of the others, and alpha times its square the paper's loss
        return sized((speed - target) / expand(alpha, z), self.power, self.constant, alpha)


def alpha_target(map: FlowMap, z: Tensor, tau: Tensor, rho: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    """What the average velocity from tau to rho is, were v that of the first share alpha of the way."""
    step = alpha * (tau - rho)
    rest = map.speed(z - expand(step, z) * v, tau - step, rho)
    return torch.lerp(rest, v, expand(alpha, z))


@kind("objective.Shortcut")
@dataclass(frozen=True)
class Shortcut(FromData):
    """A stretch is two of half its length: m(tau, rho) = (m(tau, mid) + m(z_mid, mid, rho)) / 2, on powers of 2.

    levels: the shortest half is 2^-levels, where the network's velocity stands in. share: of the samples that learn
    this; the others learn the velocity. Frans et al. 2024, arXiv:2410.12557, Algorithm 1, where the share is a quarter
    and levels is 7.
    """

    levels: int = 7
    share: float = 0.25

    def __post_init__(self):
        check_share(self.share)
        if self.levels < 1:
            raise UserError("Shortcut needs at least one level.")

    def losses(self, network, head, samples):
        apart, level = scenes(network, samples, self.share)
        return together((level, lambda scene: sized(from_path(scene))), (apart, self._stretch))

    def _stretch(self, scene: Scene) -> Losses:
        draw = scene.noise.at("level").uniform(torch.zeros(len(scene.tau), dtype=torch.float64))
        half = 0.5 ** (1 + (draw * self.levels).floor()).to(scene.tau)
        # the end of the stretch of two halves that tau lies in
        tau = (((scene.tau / (2 * half)).floor() + 1) * 2 * half).clamp_max(1)
        z = scene.state_at(tau)
        speed = scene.map.speed(z, tau, tau - 2 * half)
        with torch.no_grad(), scene.again():
            target = two_halves(scene.map, z, tau, half, half <= 0.5**self.levels)
        return sized(speed - target)


def two_halves(map: FlowMap, z: Tensor, tau: Tensor, half: Tensor, shortest: Tensor) -> Tensor:
    """The mean of the average velocities of two steps of `half`; of velocities where it is the shortest, (B,)."""
    mid = tau - half
    first = map.speed(z, tau, torch.where(shortest, tau, mid))
    second = map.speed(z - expand(half, z) * first, mid, torch.where(shortest, mid, mid - half))
    return (first + second) / 2


def check_share(share: float) -> None:
    """Raises `UserError` unless it is one."""
    if not 0 <= share <= 1:
        raise UserError(f"share is one of the samples, from 0 to 1, not {share}.")
