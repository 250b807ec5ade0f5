"""Flow maps: a network that says from a state at one time where the flow carries it by another.

Divide the data by their standard deviation and take the clock tau = sigma / (sigma + alpha sigma_data): every Gaussian
process becomes the straight path z = (1 - tau) y + tau eps, whatever its schedule. A flow map is its average velocity,

    f(z, tau -> rho) = z - (tau - rho) m(z, tau, rho),        m(z, tau, tau) = the velocity of the flow,

so that f(z, tau -> tau) = z holds by construction. With the target EDM_F the net's output F and m are one line apart,

    m = ((2 tau - 1) z / h - F) / h,        h = |(tau, 1 - tau)|,

and rho does not enter: a step of DDIM with an answer that depends on where it is to lead. A net that ignores rho
makes DDIM's steps, so any trained network *is* a flow map, an inexact one, and training starts from there. F is given
z / h, the noise angle of tau, and that of rho as cond["toward"] (`Network` says what that is to its user).

m is that of the flow where any of three things holds, and each is a way to train it:

    m + (tau - rho) dm/dtau = velocity        along the flow, rho fixed          (mean flow, align your flow)
    (tau - rho) m = (tau - sig) m(z, tau, sig) + (sig - rho) m(z_sig, sig, rho)  (shortcut, alpha-flow, trajectories)
    m(z, tau, tau) = velocity                                                    (flow matching, the anchor of all)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.fewstep.tangent import Tangent, random_state, replayed
from backdrift.noise import Noise
from backdrift.objective.base import Losses, Objective, Samples
from backdrift.posterior import expand
from backdrift.target import EDM_F

TOLD = ("toward",)


@dataclass(frozen=True)
class FlowMap:
    """The map f of a net in the coordinates above. cond: conditions, (B, ...) each, with "guidance" as an angle.

    net: called as net(u, angle, cond). All tensors keep z's dtype; tau, rho: (B,).
    """

    net: torch.nn.Module
    cond: Mapping[str, Tensor]

    def speed(self, z: Tensor, tau: Tensor, rho: Tensor | None = None) -> Tensor:
        """m(z, tau, rho), the average velocity; rho = tau where it is left out."""
        rho = tau if rho is None else rho
        h, place = torch.hypot(tau, 1 - tau), expand(tau, z)
        u = z / expand(h, z)
        F = self.net(u, angle(tau), {**self.cond, "toward": angle(rho)})
        return ((2 * place - 1) * u - F) / expand(h, z)

    def jump(self, z: Tensor, tau: Tensor, rho: Tensor) -> Tensor:
        """f(z, tau -> rho)."""
        return z - expand(tau - rho, z) * self.speed(z, tau, rho)

    def rise(self, tangent: Tangent, z: Tensor, tau: Tensor, rho: Tensor, along: Tensor) -> Tensor:
        """dm(z, tau, rho)/dtau where dz/dtau = `along` and rho stays, without a gradient."""
        return tangent.along(lambda z, tau: self.speed(z, tau, rho), z, tau, along, torch.ones_like(tau))


@dataclass(frozen=True)
class Scene:
    """Some samples of a batch in these coordinates: the map, data y and noise eps in units of the data, and times.

    rows: which samples they are. tau, rho: (B,), rho <= tau. progress: (B,), of the training. noise: their own draws.
    state: torch's random state, for passes under one dropout.
    """

    map: FlowMap
    rows: Tensor
    y: Tensor
    eps: Tensor
    tau: Tensor
    rho: Tensor
    progress: Tensor
    noise: Noise
    state: Tensor

    def state_at(self, tau: Tensor) -> Tensor:
        """z on the straight path from y to eps."""
        return torch.lerp(self.y, self.eps, expand(tau, self.y))

    @property
    def velocity(self) -> Tensor:
        """dz/dtau on that path, whose mean given z is the velocity of the flow."""
        return self.eps - self.y

    def again(self):
        """Within the block the net's dropout is that of the first pass."""
        return replayed(self.state)


def scenes(network: Network, samples: Samples, share: float) -> tuple[Scene, Scene]:
    """The samples with rho uniform below tau, about this share of all, and those with rho = tau."""
    scale, schedule = network.sigma_data, network.process.schedule
    alpha, sigma = schedule.alpha_sigma(samples.t)
    tau = sigma / (sigma + alpha * scale)
    blank = torch.zeros(len(tau), dtype=torch.float64)
    apart = samples.noise.at("apart").uniform(blank) < share
    rho = torch.where(apart, tau * samples.noise.at("toward").uniform(blank), tau)

    def scene(rows: Tensor) -> Scene:
        noise, there = replace(samples.noise, index=samples.noise.index[rows]), rows.to(samples.x0.device)
        y = samples.x0[there] / scale
        cond = {name: value[rows.to(value.device)] for name, value in samples.cond.items()}
        times = (values[rows].to(y) for values in (tau, rho, samples.progress))
        return Scene(FlowMap(network.net, cond), there, y, noise.normal(y), *times, noise, random_state())

    return scene(apart.nonzero().flatten()), scene((~apart).nonzero().flatten())


def matched(scene: Scene, target: Tensor) -> Tensor:
    """What the velocity at rho = tau misses this target by."""
    return scene.map.speed(scene.state_at(scene.tau), scene.tau) - target


def together(*parts: tuple[Scene, Callable[[Scene], Losses]]) -> Losses:
    """The losses of several scenes, in the order of the batch; a scene without samples is left out."""
    some = [(scene, losses) for scene, losses in parts if len(scene.rows)]
    order = torch.cat([scene.rows for scene, _ in some]).argsort()
    found = [losses(scene) for scene, losses in some]
    return Losses(*(torch.cat(values)[order] for values in zip(*found, strict=True)))


def sized(residual: Tensor, power: float = 0.0, constant: float = 1.0, weight: Tensor | None = None) -> Losses:
    """weight |r|^2 / sg(|r|^2 + constant)^power of each sample, (B,); |r|^2 per dimension where power is 0."""
    square = residual.flatten(1).square().sum(1)
    numbers = math.prod(residual.shape[1:])
    total = square / ((square.detach() + constant) ** power if power else numbers)
    return Losses(total if weight is None else weight * total, square.detach() / numbers)


def angle(tau: Tensor) -> Tensor:
    """The noise angle of the clock's time: atan2(tau, 1 - tau)."""
    return torch.atan2(tau, 1 - tau)


def check_network(network: Network, objective: Objective) -> None:
    """Raises `UserError` unless the network's output is F above."""
    words = type(objective).__name__
    if not isinstance(network.target, EDM_F):
        raise UserError(f"{words} needs a network with the target edm_f, not {type(network.target).__name__}.")
    if abs(network.target.sigma_data / network.sigma_data - 1) > 1e-3:
        raise UserError(
            f"The target's sigma_data, {network.target.sigma_data:g}, must be the data's standard deviation, "
            f"{network.sigma_data:g}, for {words}."
        )
    if network.learned_variance or network.self_conditioning:
        raise UserError(f"{words} serves networks without a learned variance and without self-conditioning.")
