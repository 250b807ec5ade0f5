"""Denoisers: (x_t, t, cond) -> belief about x_0. `Network` is the only place where a network meets a process.

A network sees two things: the state scaled to unit variance, and the noise angle w = atan2(sigma, alpha sigma_data),
which is finite at both ends of every schedule. Both depend on the noise-to-signal ratio alone, so where the target
does too (X0, EPS, EDM_F) a trained network serves any schedule: give it another process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from backdrift.errors import UserError
from backdrift.posterior import CategoricalPosterior, Posterior, TensorPosterior, expand
from backdrift.process.base import Process, State
from backdrift.process.discrete import Masking, UniformTokens
from backdrift.process.gaussian import Gaussian
from backdrift.target import Target


class Denoiser(nn.Module, ABC):
    """Anything that knows E[x_0 | x_t, cond] for its process.

    process: the corruption that it inverts. event_shape: the shape of one sample (for a product, a dict of shapes).
    """

    process: Process
    event_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]

    @abstractmethod
    def forward(self, xt: State, t: float | Tensor, cond: Mapping | None = None) -> Posterior:
        """The belief about x_0. xt: (B, *event); t: a float or (B,); cond: a mapping of conditions, or None."""


class Network(Denoiser):
    """A network as the denoiser of a Gaussian process.

    net: called as net(x, noise, cond) with x (B, *event) of unit variance and noise (B,) float32, the angle in
        [0, pi/2]; returns the target's prediction, in x's shape.
    target: what the network predicts. sigma_data: standard deviation of the data, for the scaling.
    learned_variance: the net returns twice as many channels, the second half being 2 `fraction` - 1 (see
        `TensorPosterior`; Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.1).
    self_conditioning: the net is given twice as many channels, the second half being an estimate of x_0 over sigma_data
        (Chen et al. 2022, arXiv:2208.04202). It is cond["estimate"]; without one the denoiser makes its own, from
        zeros at the same x_t and t, so that it stays a function of these and costs two passes of the net.
    ends_path: the mean is not the average of all x_0 but the end of the flow's path through x_t: a consistency model.
    told: further conditions that the net is made to heed (`listen`), each in `cond` as an angle (B,). "toward" makes a
        flow map: cond["toward"], a time s <= t, asks for the x_0 with which one DDIM step from x_t leads to x_s on the
        flow; without it s = t, and the mean is the average of all x_0 as ever. "guidance": the weight of a guidance
        that is built in, 1 where it is left out; its angle is that whose tangent it is.

    Raises `UserError` if the target cannot be used with the schedule (EPS or SCORE where alpha(1) = 0), and when called
    if the net does not return the channels that it should.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Gaussian,
        target: Target,
        event_shape: tuple[int, ...],
        sigma_data: float = 0.5,
        *,
        learned_variance: bool = False,
        self_conditioning: bool = False,
        ends_path: bool = False,
        told: tuple[str, ...] = (),
    ):
        super().__init__()
        target.check(process.schedule)
        if not sigma_data > 0:
            raise UserError(f"sigma_data is the data's standard deviation and must be positive, not {sigma_data}.")
        self.net, self.process, self.target = net, process, target
        self.event_shape, self.sigma_data = tuple(event_shape), sigma_data
        self.learned_variance, self.self_conditioning = learned_variance, self_conditioning
        self.ends_path, self.told = ends_path, tuple(told)
        listen(net, self.told)

    def around(self, net: nn.Module) -> Network:
        """The same denoiser with another net in its place."""
        names = ("learned_variance", "self_conditioning", "ends_path", "told")
        options = {name: getattr(self, name) for name in names}
        return Network(net, self.process, self.target, self.event_shape, self.sigma_data, **options)

    def first_estimate(self, xt: Tensor, t: float | Tensor, cond: Mapping | None = None) -> Tensor:
        """E[x_0 | x_t, cond] by one pass of a self-conditioned net, which is shown zeros for its estimate."""
        return self(xt, t, {**(cond or {}), "estimate": torch.zeros_like(xt)}).mean

    def _angles(self, xt: Tensor, noise: Tensor, cond: Mapping) -> dict[str, Tensor]:
        """What the net is told of `told`, as angles like `noise`."""
        found = {}
        if "toward" in self.told:
            toward = cond.get("toward")
            if toward is not None:
                alpha, sigma = self.process.schedule.alpha_sigma(toward)
                toward = torch.atan2(sigma, alpha * self.sigma_data)
            found["toward"] = noise if toward is None else toward.to(noise).expand(len(xt))
        if "guidance" in self.told:
            weight = torch.as_tensor(cond.get("guidance", 1.0), dtype=torch.float64)
            found["guidance"] = weight.atan().to(noise).expand(len(xt))
        return found

    def forward(self, xt, t, cond=None):
        schedule = self.process.schedule
        alpha, sigma = schedule.alpha_sigma(t)
        scale = (sigma**2 + (alpha * self.sigma_data) ** 2).rsqrt()
        w = torch.atan2(sigma, alpha * self.sigma_data)
        noise = w.to(device=xt.device, dtype=torch.float32).expand(xt.shape[0])
        # the state keeps its own precision; only what the network sees is in the network's
        dtype = next((v.dtype for v in self.net.parameters() if v.is_floating_point()), xt.dtype)
        seen = expand(scale, xt) * xt
        if self.self_conditioning:
            cond = dict(cond or {})
            estimate = cond.pop("estimate") if "estimate" in cond else self.first_estimate(xt, t, cond)
            seen = torch.cat([seen, estimate / self.sigma_data], 1)
        if self.told:
            cond = {**(cond or {}), **self._angles(xt, noise, cond or {})}
        p, fraction = self.net(seen.to(dtype), noise, cond).to(xt.dtype), None
        if self.learned_variance:
            if p.shape[1] != 2 * xt.shape[1]:
                raise UserError(
                    f"A learned variance needs a network that returns {2 * xt.shape[1]} channels, not {p.shape[1]}."
                )
            p, v = p.chunk(2, dim=1)
            fraction = (v + 1) / 2
        skip, out = self.target.skip_out(schedule, t)
        if bool((sigma == 0).any()):
            # at sigma = 0 the state is alpha x_0: whatever the network says, even NaN, is not used
            skip, out = torch.where(sigma == 0, 1 / alpha, skip), torch.where(sigma == 0, 0.0, out)
            p = p.masked_fill(expand(sigma == 0, xt).bool(), 0.0)
        return TensorPosterior(expand(skip, xt) * xt + expand(out, xt) * p, fraction)


def listen(net: nn.Module, names: tuple[str, ...]) -> None:
    """Make `net` heed further angles in `cond`: the library's nets learn to, others say in `told` what they heed.

    Raises `UserError` where one does not.
    """
    missing = [name for name in names if name not in getattr(net, "told", ())]
    further = getattr(getattr(net, "conditioning", None), "further", None)
    if further is not None:
        further.listen(missing)
    elif missing:
        raise UserError(
            f"A {type(net).__name__} does not say that it heeds {' and '.join(missing)}: give it an attribute `told` "
            'with these names, and read cond["..."], angles of shape (B,).'
        )


class TokenNetwork(Denoiser):
    """A network as the denoiser of a discrete process.

    net: called as net(tokens, noise, cond) with tokens (B, *event) and noise (B,) float32, pi/2 times the lost
        fraction 1 - alpha(t); returns logits (B, *event, K).
    """

    def __init__(self, net: nn.Module, process: Masking | UniformTokens, event_shape: tuple[int, ...]):
        super().__init__()
        self.net, self.process, self.event_shape = net, process, tuple(event_shape)

    def forward(self, xt, t, cond=None):
        alpha, _ = self.process.schedule.alpha_sigma(t)
        noise = ((1 - alpha) * (torch.pi / 2)).to(device=xt.device, dtype=torch.float32).expand(xt.shape[0])
        log_probs = self.net(xt, noise, cond).log_softmax(-1)
        if isinstance(self.process, Masking):
            # a visible token is x_0 itself: the belief is certain there
            known = torch.nn.functional.one_hot(xt.clamp_max(self.process.classes - 1), self.process.classes)
            visible = (xt != self.process.mask).unsqueeze(-1)
            log_probs = torch.where(visible, known.to(log_probs.dtype).log(), log_probs)
        return CategoricalPosterior(log_probs)
