"""The log-density of the probability flow.

The flow carries the data's law to the law at t = 1; along it, d log p / dt = - divergence of the velocity. Written as
in `exact.flow`, for the state z = x / (scale |(alpha, sigma / scale)|) of unit variance, the angle
w = atan2(sigma, alpha scale) and the clock c = log tan(w / 2),

    dz/dc = cos(w) z - D / scale,      divergence = d cos(w) - |(alpha, sigma / scale)| tr(dD/dx).

The clock is finite at pure noise, needs no small step near the data, and makes the result independent of the schedule.
State and divergence are solved together by the classical fourth-order Runge-Kutta rule in uniform steps of c.

Two things are not the solver's. The density at t = 1 is taken to be the process's prior, N(0, sigma_1^2): where the
true law there is another (alpha(1) > 0), log p is wrong by log N(x_1; 0, sigma_1^2) - log p_1(x_1), which no number of
steps removes. And the density is that of x_first / alpha_first, data with noise of sigma / alpha = 1e-3 by default.

Chen et al. 2018, arXiv:1806.07366, Eq. 8; Song et al. 2021, arXiv:2011.13456, Eq. 39 and 40.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.likelihood.estimate import LogLikelihood, at_least, averaged, checked
from backdrift.likelihood.trace import ExactTrace, Trace
from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.sample.default import data_scale


def density(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int = 50,
    trace: Trace | None = None,
    first: float | None = None,
    cond: Mapping | None = None,
    noise: Noise | None = None,
) -> LogLikelihood:
    """log p(x) by the probability flow; x: (B, *event).

    steps: Runge-Kutta steps, each of four calls of the denoiser and of four times the trace's products. trace: by
    default exact, a backward pass per dimension. first: the time at which x is taken to be, x_first = alpha x. noise:
    the samples' own probes. The standard error is over the trace's probes; the solver's error comes on top, and falls
    with the fourth power of `steps`.

    Raises `UserError` for data, conditions or a process that do not fit.
    """
    noise, first = checked(denoiser, x, cond, noise, first)
    at_least(1, steps, "steps")
    trace, scale, schedule = trace or ExactTrace(), data_scale(denoiser), denoiser.process.schedule
    # the nodes of the clock and the middles between them
    ends = schedule.alpha_sigma(torch.tensor([first, 1.0], dtype=torch.float64))
    c_first, c_last = (torch.atan2(ends[1], scale * ends[0]) / 2).tan().log()
    clock = torch.lerp(c_first, c_last, torch.linspace(0, 1, 2 * steps + 1, dtype=torch.float64))
    times = schedule.time(-2 * (torch.sinh(-clock).reciprocal().log() + math.log(scale))).clamp(first, 1)
    times[0], times[-1] = first, 1.0
    alphas, sigmas = schedule.alpha_sigma(times)
    norms = torch.hypot(alphas, sigmas / scale).tolist()
    cosines = (-clock.tanh()).tolist()
    probes = trace.draw(noise.at("trace"), flat(x).double())

    def slopes(n: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """(dz/dc, the divergence's shares (P, B, D)) at node n."""
        state = (scale * norms[n] * z).to(x.dtype).view(x.shape).requires_grad_()
        with torch.enable_grad():
            mean = denoiser(state, float(times[n]), cond).mean

        def product(v: Tensor) -> Tensor:
            (pulled,) = torch.autograd.grad(mean, state, v.to(mean.dtype).view(x.shape), retain_graph=True)
            return flat(pulled).double()

        shares = cosines[n] - norms[n] * trace.diagonal(product, probes)
        return cosines[n] * z - flat(mean.detach()).double() / scale, shares

    z = float(alphas[0]) / (scale * norms[0]) * flat(x).detach().double()
    h, total = float(clock[2] - clock[0]), 0.0
    for n in range(0, 2 * steps, 2):
        k1, a = slopes(n, z)
        k2, b = slopes(n + 1, z + h / 2 * k1)
        k3, c = slopes(n + 1, z + h / 2 * k2)
        k4, d = slopes(n + 2, z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        total = total + h / 6 * (a + 2 * b + 2 * c + d)
    # the prior of x_1 = scale norm z, and both changes of variables; sigma(1) is the prior's standard deviation
    reach = scale * norms[-1] / float(sigmas[-1])
    prior = -(reach * z).square() / 2 - math.log(2 * math.pi) / 2 + math.log(reach)
    shares = total + prior + math.log(float(alphas[0]) / (scale * norms[0]))
    return LogLikelihood(*averaged([one.view(x.shape) for one in shares]))
