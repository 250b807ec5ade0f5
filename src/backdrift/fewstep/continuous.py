"""Consistency models in continuous time (sCM): the tangent in place of a difference.

In units of the data's standard deviation and in the noise angle w, every Gaussian process is

    u = cos w y + sin w eps,        f(u, w) = cos w u + sin w F(u, w),        y = x_0 / sigma_data,

where F is what a network with the target EDM_F gives. f is the end of the path where df/dw = 0 along it,

    df/dw = cos w (F + u') + sin w (dF/dw - u),        dF/dw = dF/du u' + dF/dw (one forward-mode pass),

with u' = cos w eps - sin w y from the data (sCT), or u' = -F_teacher(u, w), the teacher's flow (sCD). Minimising

    e^-l(w) |F - sg(F - g)|^2 + l(w),       g = cos w df/dw, warmed up and normalised

moves f against df/dw. Lu and Song 2024, arXiv:2410.11081, Algorithm 1 and section 4 (their F is minus ours, and their
time is our angle).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backdrift.config import kind
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.fewstep.consistency import Teacher
from backdrift.fewstep.tangent import Exact, Tangent, normalised, random_state, replayed
from backdrift.objective.base import Losses, Objective, Samples
from backdrift.objective.uncertainty import LogLoss
from backdrift.posterior import expand
from backdrift.target import EDM_F


@kind("objective.ContinuousConsistency")
@dataclass(frozen=True)
class ContinuousConsistency(Objective):
    """sCT, or with `distill` sCD from the network as it was at the start.

    guidance: of the teacher. warmup: the share of the training over which the tangent's second part comes in. constant:
    of the tangent's normalisation. nodes: of the learned log-loss over noise levels. tangent: how dF/dw is taken.

    Raises `UserError` where the network's target is not EDM_F.
    """

    distill: bool = True
    guidance: float = 1.0
    warmup: float = 0.25
    constant: float = 0.1
    nodes: int = 16
    tangent: Tangent = field(default_factory=Exact)

    def __post_init__(self):
        if not (0 <= self.warmup <= 1 and self.constant > 0 and self.guidance >= 0):
            raise UserError("ContinuousConsistency needs warmup in [0, 1], a positive constant and guidance >= 0.")
        if self.guidance != 1 and not self.distill:
            raise UserError("Only a teacher can be guided: distill, or leave the guidance at 1.")

    @property
    def ends_path(self):
        return True

    def head(self, network):
        if not isinstance(network.target, EDM_F):
            raise UserError(
                f"Continuous-time consistency needs a network with the target edm_f, the default, not "
                f"{type(network.target).__name__}; EasyConsistency serves every target."
            )
        if abs(network.target.sigma_data / network.sigma_data - 1) > 1e-3:
            raise UserError(
                f"The target's sigma_data, {network.target.sigma_data:g}, must be the data's standard deviation, "
                f"{network.sigma_data:g}, for continuous-time consistency."
            )
        return Head(network, self.nodes, self.distill)

    def losses(self, network, head, samples):
        schedule, scale = network.process.schedule, network.sigma_data
        alpha, sigma = schedule.alpha_sigma(samples.t)
        w = torch.atan2(sigma, alpha * scale)
        y, eps = samples.x0 / scale, samples.noise.normal(samples.x0)
        cos, sin = (expand(value, y) for value in (w.cos(), w.sin()))
        u = cos * y + sin * eps
        angle = w.to(device=u.device, dtype=torch.float32)
        if head.teacher is None:
            speed = cos * eps - sin * y
        else:
            speed = teacher_speed(head, self.guidance, u, angle, samples)

        def net(state: Tensor, at: Tensor) -> Tensor:
            return network.net(state, at, samples.cond)

        state = random_state()
        F = net(u, angle)
        with replayed(state):
            # scaled by cos w sin w, which is zero at both ends, where dF/dw alone may be large
            rise = self.tangent.along(net, u, angle, cos * sin * speed, (w.cos() * w.sin()).to(angle))
        warm = (samples.progress / max(self.warmup, 1e-9)).clamp(0, 1)
        g = tangent(F.detach(), rise, u, speed, w, warm)
        g = normalised(g.nan_to_num(), self.constant)
        level = head.log_loss(schedule, samples.t)
        weight = 1 / w.tan().clamp(1e-3, 1e3)
        square = (F - (F.detach() - g)).flatten(1).square().sum(1)
        total = weight.to(square) * square / level.exp() / math.prod(network.event_shape) + level
        return Losses(total, total.detach())


class Head(torch.nn.Module):
    """The learned log-loss, and the teacher where there is one."""

    def __init__(self, network: Network, nodes: int, distil: bool):
        super().__init__()
        self.teacher = Teacher(network) if distil else None
        self.log_loss = LogLoss(nodes, network.sigma_data)


def tangent(F: Tensor, rise: Tensor, u: Tensor, speed: Tensor, w: Tensor, warm: Tensor) -> Tensor:
    """cos w df/dw, with its second part weighted by `warm` (B,). rise: cos w sin w dF/dw along the path."""
    cos, sin, warm = (expand(value, u) for value in (w.cos(), w.sin(), warm))
    return cos**2 * (F + speed) + warm * (rise - cos * sin * u)


@torch.no_grad()
def teacher_speed(head: Head, guidance: float, u: Tensor, angle: Tensor, samples: Samples) -> Tensor:
    """u' = -F of the teacher, guided."""
    net, cond = head.teacher.network.net, samples.cond
    given = net(u, angle, cond)
    if guidance == 1 or "label" not in cond:
        return -given
    without = net(u, angle, {name: value for name, value in cond.items() if name != "label"})
    return -torch.lerp(without, given, guidance)
