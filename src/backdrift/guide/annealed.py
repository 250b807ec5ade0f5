"""Condition annealing: a condition that is uncertain where there is much noise, so that samples differ more.

Strong guidance makes samples alike because the condition decides already in the noise where each of them goes. CADS
(Sadat et al. 2023, arXiv:2310.17347, Algorithm 1) corrupts the condition there, and lets it be at the end:

    y <- sqrt(g) y + scale sqrt(1 - g) n,    g falling from 1 at sigma / alpha = low to 0 at high,

and then gives y its own mean and deviation back. That is for a condition of real numbers, such as a text's tokens.
What a Gaussian corruption is to numbers, masking is to labels: the label survives with probability g, and is the null
otherwise. Averaged over that, the belief is uncond.lerp(cond, g).

Both take one draw for each sample and keep it all along (a label has a level from which on it counts, drawn between
high and low; the paper draws n anew in every step). So the annealed model is a `Denoiser` like any other, and more
steps follow the same path. The draw is keyed by the sample's number, which the condition carries: cond["sample"].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.posterior import expand
from backdrift.process.base import State
from backdrift.process.gaussian import Gaussian


class Annealed(Denoiser):
    """`denoiser` with the conditions `names` annealed. Guide it afterwards: ClassifierFree(Annealed(d, ...), w).

    low, high: sigma / alpha from which on the condition is whole, and above which it is noise; the logarithm counts
    between. scale, rescale: of conditions of real numbers, s and psi of the paper. A call's cond holds "sample", the
    numbers (B,) of the samples, beside the conditions; without any of `names` it passes as it is. Where some labels of
    a batch are masked and others not, a call is two passes.

    Raises `UserError` for low >= high or a process without noise levels, and in a call without "sample".
    """

    def __init__(
        self,
        denoiser: Denoiser,
        low: float,
        high: float,
        *,
        names: tuple[str, ...] = ("label",),
        scale: float = 0.25,
        rescale: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        if not isinstance(denoiser.process, Gaussian):
            raise UserError(
                f"Annealing follows the noise of a Gaussian process, not {type(denoiser.process).__name__}."
            )
        if not 0 < low < high < math.inf:
            raise UserError(f"Annealing goes from a noise level above 0 to a higher one, not from {low} to {high}.")
        if not (scale >= 0 and 0 <= rescale <= 1):
            raise UserError(f"Annealing takes a scale of at least 0 and rescales by 0 to 1, not {scale} and {rescale}.")
        self.denoiser, self.low, self.high, self.names = denoiser, low, high, tuple(names)
        self.scale, self.rescale, self.seed = scale, rescale, seed
        self.process, self.event_shape = denoiser.process, denoiser.event_shape
        self.sigma_data = getattr(denoiser, "sigma_data", 0.5)

    def share(self, t: float | Tensor) -> Tensor:
        """g at t, () or (B,) float64: how much of the condition is there."""
        half = -self.process.schedule.logsnr(t) / 2
        top, bottom = math.log(self.high), math.log(self.low)
        return ((top - half) / (top - bottom)).clamp(0, 1)

    def forward(self, xt: State, t: float | Tensor, cond: Mapping | None = None):
        cond = dict(cond or {})
        numbers = cond.pop("sample", None)
        present = [name for name in self.names if name in cond]
        if not present:
            return self.denoiser(xt, t, cond)
        if numbers is None:
            raise UserError(
                "Condition annealing draws by the samples' numbers: give cond['sample'], such as arange(n)."
            )
        noise, g = Noise(self.seed, numbers.cpu()).at("anneal"), self.share(t)
        masked = []
        for name in present:
            if cond[name].is_floating_point():
                cond[name] = self.noised(cond[name], g, noise.at(name))
            elif cond[name].dtype != torch.bool:
                masked.append(name)
        if not masked:
            return self.denoiser(xt, t, cond)
        kept = (noise.at("mask").uniform(torch.zeros(len(numbers), dtype=torch.float64)) < g).to(xt.device)
        if bool(kept.all()):
            return self.denoiser(xt, t, cond)
        without = self.denoiser(xt, t, {name: value for name, value in cond.items() if name not in masked})
        return without.lerp(self.denoiser(xt, t, cond), kept.double()) if bool(kept.any()) else without

    def noised(self, y: Tensor, g: Tensor, noise: Noise) -> Tensor:
        """A condition (B, ...) of real numbers at share g, with its own mean and deviation as far as `rescale` says."""
        g = expand(g.to(y.device), y)
        noised = g.sqrt() * y + self.scale * (1 - g).sqrt() * noise.normal(y)
        if y[0].numel() < 2:
            return noised
        axes = tuple(range(1, y.ndim))
        mean, std = noised.mean(axes, keepdim=True), noised.std(axes, keepdim=True).clamp_min(1e-12)
        own = (noised - mean) / std * y.std(axes, keepdim=True) + y.mean(axes, keepdim=True)
        return torch.lerp(noised, own, self.rescale)
