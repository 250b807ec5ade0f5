"""Samplers that serve every process: predict x_0, then take the process's own step back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.process.discrete import Masking
from backdrift.sample.plan import Step
from backdrift.sample.solver import Sampler


@kind("solver.Bridge")
@dataclass(frozen=True)
class Bridge(Sampler):
    """x_s ~ q(x_s | x_t, x_0) with x_0 from the denoiser's belief, for pictures, tokens, and products of them.

    On a Gaussian process it has the law of DDPM with the smaller variance; on tokens it is the ancestral sampler of
    Austin et al. 2021, arXiv:2107.03006, Eq. 4, of first order in the number of steps.
    """

    def run(self, denoiser, x1, times, cond=None, noise=None, on_step=None):
        if noise is None:
            raise UserError("The bridge sampler is stochastic: give it a Noise, such as Noise.of(seed, batch).")
        x, total = x1, len(times) - 1
        for n, (t, s) in enumerate(itertools.pairwise(times.tolist())):
            posterior = denoiser(x, t, cond)
            if on_step is not None:
                on_step(Step(n, total, t, x, posterior.mean))
            x = denoiser.process.bridge(x, posterior, t, s, noise.at("bridge", n))
        return x


@kind("solver.Reveal")
@dataclass(frozen=True)
class Reveal(Sampler):
    """Unmasks a fixed number of tokens a step, in a random order of each sample's own.

    With n steps and d positions, step k reveals positions k d / n to (k + 1) d / n of the order. With one position a
    step the law of the samples is exactly the denoiser's own, whatever the schedule. Only for `process.Masking`.
    """

    def run(self, denoiser, x1, times, cond=None, noise=None, on_step=None):
        process = denoiser.process
        if not isinstance(process, Masking):
            raise UserError(f"Reveal serves a Masking process, not {type(process).__name__}.")
        if noise is None:
            raise UserError("Reveal is stochastic: give it a Noise, such as Noise.of(seed, batch).")
        total, x = len(times) - 1, x1
        rank = noise.at("order").uniform(x1.double()).flatten(1).argsort(1).argsort(1).view(x1.shape)
        positions = rank[0].numel()
        for n in range(total):
            low, high = n * positions // total, (n + 1) * positions // total
            # the time at which this fraction of the tokens is expected to be lost
            lost = torch.tensor(1 - low / positions, dtype=torch.float64)
            t = float(_time_of_loss(process, lost))
            posterior = denoiser(x, t, cond)
            if on_step is not None:
                on_step(Step(n, total, t, x, posterior.mean))
            drawn = process.draw(x, posterior, noise.at("reveal", n))
            x = torch.where((rank >= low) & (rank < high) & (x == process.mask), drawn, x)
        return x


def _time_of_loss(process: Masking, lost: torch.Tensor) -> torch.Tensor:
    """The time at which alpha = 1 - lost, by bisection (alpha falls from 1 to 0)."""
    low, high = torch.zeros_like(lost), torch.ones_like(lost)
    for _ in range(60):
        mid = (low + high) / 2
        below = process.schedule.alpha_sigma(mid)[0] > 1 - lost
        low, high = torch.where(below, mid, low), torch.where(below, high, mid)
    return high
