"""Flow maps from a teacher, the network as it was when the training began: paths, trajectories, align your flow.

`flowmap` has the coordinates and the identities. A teacher's velocity is a function of the state, so that targets carry
no noise, and the map that is learned can be followed in any number of steps without getting worse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.fewstep.consistency import Teacher
from backdrift.fewstep.fixed import Fixed
from backdrift.fewstep.flowmap import TOLD, FlowMap, Scene, check_network, matched, scenes, sized, together
from backdrift.fewstep.meanflow import eulerian
from backdrift.fewstep.tangent import Exact, Tangent, normalised
from backdrift.fewstep.trajectory import path_of
from backdrift.objective.base import Losses, Objective
from backdrift.posterior import expand


class FromTeacher(Objective):
    """What they have in common: a flow map, and a teacher of the same net."""

    @property
    def told(self):
        return TOLD

    def head(self, network):
        check_network(network, self)
        return Teacher(network)


@kind("objective.PathMap")
@dataclass(frozen=True)
class PathMap(FromTeacher):
    """From every state on a path of the teacher to every later one: mid-training for flow maps, plain regression.

    steps: evaluations of the teacher on a path. to_end: the share of the pairs that lead to the path's end. Hu et al.
    2025, arXiv:2509.24526.
    """

    steps: int = 16
    guidance: float = 1.0
    to_end: float = 0.5

    def __post_init__(self):
        if self.steps < 2 or self.guidance < 0 or not 0 <= self.to_end <= 1:
            raise UserError("PathMap needs paths of at least 2 steps, guidance >= 0 and a share to_end.")

    def losses(self, network, head, samples):
        schedule, scale = network.process.schedule, network.sigma_data
        count, device = len(samples.x0), samples.x0.device
        paths = math.ceil(count / self.steps)
        cond = {name: value[:paths] for name, value in samples.cond.items()}
        x1 = network.process.corrupt(samples.x0, 1.0, samples.noise)[:paths]
        times, states, ends = path_of(head.guided(self.guidance, cond), x1, cond, self.steps)
        # the end is the state at t = 0, where nothing is scaled
        times, states = torch.cat([times, torch.zeros(1).double()]), torch.cat([states, ends[None]])
        alpha, sigma = schedule.alpha_sigma(times)
        sigma[-1] = 0.0
        clock = sigma / (sigma + alpha * scale)
        states = states / expand(alpha * scale + sigma, states)
        which, first = torch.arange(count) % paths, torch.arange(count) // paths
        blank = torch.zeros(count, dtype=torch.float64)
        further = samples.noise.at("toward").uniform(blank) * (self.steps - first)
        later = first + 1 + further.long().clamp_max(self.steps - 1 - first)
        later = torch.where(samples.noise.at("apart").uniform(blank) < self.to_end, self.steps, later)
        tau, rho = (clock[place].to(device=device, dtype=states.dtype) for place in (first, later))
        z, reached = states[first, which], states[later, which]
        flow_map = FlowMap(network.net, {name: value[which.to(value.device)] for name, value in cond.items()})
        target = (z - reached) / expand(tau - rho, z)
        return sized(flow_map.speed(z, tau, rho) - target)


@kind("objective.AlignYourFlow")
@dataclass(frozen=True)
class AlignYourFlow(FromTeacher):
    """The tangent g = m + r (tau - rho) dm/dtau - v of the identity along the teacher's velocity v, normalised.

        |m - sg(m - g / (|g| + constant))|^2

    r rises from 0 to `most` over the first share `warmup` of the training. share: of the samples with rho < tau; the
    others have g = m - v, which is flow matching to the teacher. Sabour et al. 2025, arXiv:2506.14603 (its
    Eulerian loss).
    """

    guidance: float = 1.0
    share: float = 0.75
    warmup: float = 0.25
    most: float = 0.99
    constant: float = 0.1
    tangent: Tangent = field(default_factory=Exact)

    def __post_init__(self):
        if not (self.guidance >= 0 and 0 <= self.share <= 1 and 0 <= self.warmup <= 1 and 0 <= self.most <= 1):
            raise UserError("AlignYourFlow needs guidance >= 0, and shares for share, warmup and most.")
        if not self.constant > 0:
            raise UserError("AlignYourFlow needs a positive constant.")

    def losses(self, network, head, samples):
        apart, level = scenes(network, samples, self.share)
        return together(
            (apart, lambda scene: self._align(scene, head)), (level, lambda scene: self._anchor(scene, head))
        )

    def _align(self, scene: Scene, head: Teacher) -> Losses:
        z = scene.state_at(scene.tau)
        speed = scene.map.speed(z, scene.tau, scene.rho)
        v = TeacherFlow(head, self.guidance, scene.map.cond).velocity(z, scene.tau)
        with scene.again():
            rise = scene.map.rise(self.tangent, z, scene.tau, scene.rho, v)
        warm = (scene.progress / max(self.warmup, 1e-9)).clamp_max(1) * self.most
        g = eulerian(speed.detach(), rise, warm * (scene.tau - scene.rho), v).nan_to_num()
        return sized(speed - (speed.detach() - normalised(g, self.constant)))

    def _anchor(self, scene: Scene, head: Teacher) -> Losses:
        return sized(from_teacher(scene, head, self.guidance))


@kind("objective.Trajectory")
@dataclass(frozen=True)
class Trajectory(FromTeacher):
    """Consistency trajectories: to rho straight, or by one step of the teacher first, and on from there to the end.

        |f(f(z, tau -> rho), rho -> 0) - f(f(heun(z, tau -> sig), sig -> rho), rho -> 0)|^2

    where only the first f is trained. steps: of the teacher's grid in the clock, of which sig is the neighbour of tau.
    anchor: the weight of flow matching to the teacher on the other samples. Kim et al. 2024, arXiv:2310.02279,
    Algorithm 1, without its adversarial term, and with the teacher's velocity where it has the data's.
    """

    steps: int = 18
    guidance: float = 1.0
    share: float = 0.5
    anchor: float = 1.0

    def __post_init__(self):
        if self.steps < 2 or self.guidance < 0 or not 0 <= self.share <= 1 or self.anchor < 0:
            raise UserError("Trajectory needs at least 2 steps, guidance and anchor >= 0, and a share.")

    def losses(self, network, head, samples):
        apart, level = scenes(network, samples, self.share)
        return together(
            (apart, lambda scene: self._two_ways(scene, head)), (level, lambda scene: self._anchor(scene, head))
        )

    def _anchor(self, scene: Scene, head: Teacher) -> Losses:
        return sized(math.sqrt(self.anchor) * from_teacher(scene, head, self.guidance))

    def _two_ways(self, scene: Scene, head: Teacher) -> Losses:
        place = (scene.tau * self.steps).ceil().clamp_min(1)
        tau, sig = place / self.steps, (place - 1) / self.steps
        # one of the grid's times from 0 to sig
        rho = torch.minimum((scene.rho / scene.tau * place).floor() / self.steps, sig)
        z = scene.state_at(tau)
        teacher = TeacherFlow(head, self.guidance, scene.map.cond)
        far, near = self._ends(scene, teacher, z, tau, sig, rho)
        # in units of the average velocity from tau to 0
        return sized((far - near) / expand(tau, z))

    def _ends(self, scene: Scene, teacher: TeacherFlow, z, tau, sig, rho) -> tuple[Tensor, Tensor]:
        """Where the two ways end, both by weights that take no gradient from the last jump."""
        frozen, zero = FlowMap(Fixed(scene.map.net), scene.map.cond), torch.zeros_like(tau)
        at_rho = scene.map.jump(z, tau, rho)
        with scene.again():
            far = frozen.jump(at_rho, rho, zero)
        with torch.no_grad():
            with scene.again():
                kept = scene.map.jump(teacher.step(z, tau, sig), sig, rho)
            with scene.again():
                near = frozen.jump(kept, rho, zero)
        return far, near


def from_teacher(scene: Scene, head: Teacher, guidance: float) -> Tensor:
    """What the velocity misses the teacher's by."""
    z = scene.state_at(scene.tau)
    return matched(scene, TeacherFlow(head, guidance, scene.map.cond).velocity(z, scene.tau))


@dataclass(frozen=True)
class TeacherFlow:
    """The teacher's velocity, guided, in the coordinates of `flowmap`, under these conditions."""

    head: nn.Module
    guidance: float
    cond: Mapping[str, Tensor]

    @torch.no_grad()
    def velocity(self, z: Tensor, tau: Tensor) -> Tensor:
        """dz/dtau of the flow at z."""
        net = self.head.network.net
        given = FlowMap(net, self.cond).speed(z, tau)
        if self.guidance == 1 or "label" not in self.cond:
            return given
        without = {name: value for name, value in self.cond.items() if name != "label"}
        return torch.lerp(FlowMap(net, without).speed(z, tau), given, self.guidance)

    def step(self, z: Tensor, tau: Tensor, sig: Tensor) -> Tensor:
        """One Heun step of the flow, from tau to sig."""
        gap, first = expand(tau - sig, z), self.velocity(z, tau)
        return z - gap * (first + self.velocity(z - gap * first, sig)) / 2
