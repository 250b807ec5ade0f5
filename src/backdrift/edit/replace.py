"""Inpainting, outpainting and super-resolution by putting what is known back in at every level.

A step goes back as always; then the known part of x_s is replaced by the known picture, noised to the same level. The
rest learns of the known part only through the denoiser at this one level, so it may not fit: RePaint noises the state
again and repeats the step. Neither is exact. The known part at a level is a fresh draw that knows nothing of the
unknown part, so what comes out is not the law of the picture given the known part, however many the steps; the docs
measure how far it is, and `backdrift.inverse` has samplers that are closer.

"Part" is any projection: a mask (inpainting), or what a low-pass filter keeps (Choi et al. 2021, arXiv:2108.02938).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.edit.partial import check_event, check_mask
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.process.gaussian import Gaussian
from backdrift.sample.plan import Step
from backdrift.sample.solver import Sampler


@dataclass(frozen=True)
class Masked:
    """The projection onto the pixels of a mask: x times mask. mask: (1 or B, *event) or (*event), in [0, 1].

    Between 0 and 1, at soft edges, known and made are blended in proportion at every level.

    Raises `UserError` for other values, and when called for pictures of another size.
    """

    mask: Tensor

    def __post_init__(self):
        if not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
            raise UserError("A mask lies between 0 (to be made) and 1 (known).")

    def __call__(self, x: Tensor) -> Tensor:
        check_mask(self.mask, x.shape)
        return x * self.mask.to(x)


@dataclass(frozen=True, eq=False)
class Replacement(Sampler):
    """Ancestral steps with the known part put back in. Song et al. 2021, arXiv:2011.13456, appendix I.2.

    known: (1 or B, *event), the picture; only its projection matters. part: the projection, `Masked(mask)` or any
    linear map with part(part(x)) = part(x). rounds: how often each stretch of `jump` steps is made; more than one is
    RePaint (Lugmayr et al. 2022, arXiv:2201.09865, Algorithm 1 and section 4.2). Of n evaluations, 1 / rounds are
    steps of the grid.

    In the output, known pixels of a mask are exact.
    """

    known: Tensor
    part: Callable[[Tensor], Tensor]
    rounds: int = 1
    jump: int = 1

    def __post_init__(self):
        if self.rounds < 1 or self.jump < 1:
            raise UserError(f"Replacement needs rounds and jump of at least 1, not {self.rounds} and {self.jump}.")

    def budget(self, steps, schedule, start):
        return self, max(1, steps // self.rounds)

    def run(self, denoiser, x1, times, cond=None, noise=None, on_step=None):
        process = denoiser.process
        if not isinstance(process, Gaussian):
            raise UserError(f"Replacement serves a Gaussian process, not {type(process).__name__}.")
        if noise is None:
            raise UserError("Replacement is stochastic: give it a Noise, such as Noise.of(seed, batch).")
        check_event(denoiser, self.known)
        known = self.known.to(x1)
        if len(known) not in (1, len(x1)):
            raise UserError(f"There are {len(known)} known pictures for {len(x1)} samples; give one, or one for each.")
        stretches = [times[i : i + self.jump + 1] for i in range(0, len(times) - 1, self.jump)]
        total, done, x = (len(times) - 1) * self.rounds, 0, x1
        x = self.put(process, x, known, float(times[0]), noise.at("known", 0))
        for stretch in stretches:
            for turn in range(self.rounds):
                for t, s in itertools.pairwise(stretch.tolist()):
                    posterior = denoiser(x, t, cond)
                    if on_step is not None:
                        on_step(Step(done, total, t, x, posterior.mean))
                    done += 1
                    x = process.bridge(x, posterior, t, s, noise.at("bridge", done))
                    x = self.put(process, x, known, s, noise.at("known", done))
                # clean data are not noised again
                if turn < self.rounds - 1 and float(stretch[-1]) > 0:
                    x = process.corrupt(x, float(stretch[0]), noise.at("again", done), float(stretch[-1]))
        return x

    def put(self, process: Gaussian, x: Tensor, known: Tensor, t: float, noise: Noise) -> Tensor:
        """x with its part replaced by the known picture's at time t; at t = 0 by the picture itself."""
        level = process.corrupt(known.expand(x.shape), t, noise) if t > 0 else known
        return x - self.part(x) + self.part(level)


def placed(picture: Tensor, shape: tuple[int, ...], top: int, left: int) -> tuple[Tensor, Tensor]:
    """A smaller picture (C, h, w) on a canvas of `shape` (C, H, W), and its mask: what outpainting starts from.

    Returns (known, mask), each (1, C, H, W). Raises `UserError` where it does not fit.
    """
    channels, height, width = shape
    c, h, w = picture.shape
    if c != channels or not (0 <= top <= height - h and 0 <= left <= width - w):
        raise UserError(f"A picture of shape {(c, h, w)} at ({top}, {left}) does not fit on a canvas of {shape}.")
    known = picture.new_zeros(1, *shape)
    mask = picture.new_zeros(1, *shape)
    known[0, :, top : top + h, left : left + w] = picture
    mask[0, :, top : top + h, left : left + w] = 1
    return known, mask


def soft_edge(mask: Tensor, width: int) -> Tensor:
    """A mask (..., H, W) of zeros and ones whose known side fades to 0 over `width` pixels at its edge.

    Known pixels nearer than `width` to the unknown ones become partly known; all others stay as they are.
    """
    if width < 1:
        raise UserError(f"A soft edge is at least 1 pixel wide, not {width}.")
    soft = mask.clone().float()
    grown = 1 - mask.float()
    lead = grown.reshape(-1, 1, *mask.shape[-2:])
    for k in range(width):
        lead = torch.nn.functional.max_pool2d(lead, 3, 1, 1)
        soft = torch.minimum(soft, torch.where(lead.view(mask.shape) > grown, (k + 1) / (width + 1), 1.0))
        grown = torch.maximum(grown, lead.view(mask.shape))
    return soft
