"""Bits per dimension of pictures: -log2 P(x) / D for 8-bit pixels x, which are 256 values in [-1, 1], 2/255 apart.

The bound has a decoder over the 256 values and needs nothing else. The other two are densities, which become
probabilities by uniform dequantisation: with u uniform in the pixel's bin, (-1/255, 1/255) around x,

    log P(x) >= E log p(x + u) + D log(2/255)

(Theis et al. 2016, arXiv:1511.01844, section 3.1), the last term being the offset log2(127.5) = 6.99 bits per
dimension.

Each stops at a `finest` noise sigma / alpha, and its model of pictures is what the denoiser says down to there: a
choice of the model, to be made without the pictures that are scored. By default the bound stops at one level, 2/255,
near DDPM's 0.01, and the densities at noise as strong as the dequantisation, 2/255 / sqrt(12). A picture with fewer
grey values than 256 (scikit-learn's digits have 17) is scored among 256 all the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.likelihood.bound import Bound, bound
from backdrift.likelihood.decoder import DiscretisedGaussian
from backdrift.likelihood.density import density
from backdrift.likelihood.estimate import LogLikelihood
from backdrift.likelihood.ladder import Continuous, Steps
from backdrift.likelihood.mmse import mmse
from backdrift.likelihood.trace import Hutchinson
from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.schedule import Schedule

BIN = 2 / 255


class PixelScore(ABC):
    """log P of pictures of 256 levels in [-1, 1]; subclasses are frozen dataclasses. finest: sigma/alpha at the end."""

    finest: float

    @property
    @abstractmethod
    def definition(self) -> str:
        """What the figure is, in a sentence."""

    def end(self, schedule: Schedule) -> float:
        """The time of the finest noise, or 0 where the schedule starts above it. Raises `UserError` where none is."""
        alpha, sigma = schedule.alpha_sigma(1.0)
        if not (self.finest > 0 and self.finest * alpha < sigma):
            raise UserError(f"The finest noise must be positive and below that of t = 1, not {self.finest:g}.")
        return float(schedule.time(-2 * math.log(self.finest)).clamp_min(0))

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x: Tensor, cond: Mapping | None, noise: Noise) -> LogLikelihood:
        """log P(x) of x (B, C, H, W), in nats of probability."""


@dataclass(frozen=True)
class ByBound(PixelScore):
    """The variational bound in continuous time, with the discretised decoder. clock: as in `Continuous`."""

    steps: int = 100
    draws: int = 2
    finest: float = BIN
    clock: Schedule | None = None

    @property
    def definition(self):
        return (
            "upper bound of -log2 P: the variational bound in continuous time, down to sigma/alpha = "
            f"{self.finest:.4g}, discretised Gaussian decoder over 256 levels, no dequantisation"
        )

    def __call__(self, denoiser, x, cond, noise):
        ladder = Continuous(self.steps, self.end(denoiser.process.schedule), self.clock)
        return bound(denoiser, x, ladder, decoder=DiscretisedGaussian(), draws=self.draws, cond=cond, noise=noise)


@dataclass(frozen=True)
class BySteps(PixelScore):
    """The variational bound of a model of `steps` steps, uniform in t, the last of which is the discretised decoder's.

    fraction: of the reverse variances, 0 DDPM's small and 1 its large one; where the denoiser has learned its variances
    they are used.
    """

    steps: int = 50
    fraction: float = 0.0
    draws: int = 2
    finest: float = BIN

    @property
    def definition(self):
        return (
            f"upper bound of -log2 P: the variational bound of {self.steps} steps uniform in t, down to sigma/alpha = "
            f"{self.finest:.4g}, variances learned or {self.fraction:g} of the way from small to large, discretised "
            "Gaussian decoder over 256 levels, no dequantisation"
        )

    def __call__(self, denoiser, x, cond, noise):
        ladder = Steps(self.steps, self.fraction, first=self.end(denoiser.process.schedule))
        return bound(denoiser, x, ladder, decoder=DiscretisedGaussian(), draws=self.draws, cond=cond, noise=noise)


@dataclass(frozen=True)
class Dequantised(PixelScore):
    """A density at pictures with one uniform draw in every pixel's bin, as a probability of the bin."""

    @property
    def definition(self):
        return f"{self.what} at sigma/alpha = {self.finest:.4g}, uniform dequantisation: one draw, offset 6.99 bits"

    @property
    @abstractmethod
    def what(self) -> str:
        """Which density."""

    @abstractmethod
    def density(self, denoiser: Denoiser, x: Tensor, first: float, cond: Mapping | None, noise: Noise) -> LogLikelihood:
        """log p(x) of x (B, C, H, W) at the time `first`."""

    def __call__(self, denoiser, x, cond, noise):
        first = self.end(denoiser.process.schedule)
        shift = noise.at("dequantise").uniform(x.double()) - 0.5
        found = self.density(denoiser, x + (BIN * shift).to(x.dtype), first, cond, noise)
        return LogLikelihood(found.map + math.log(BIN), found.error)


@dataclass(frozen=True)
class ByFlow(Dequantised):
    """The probability flow's log-density, by `steps` Runge-Kutta steps and Hutchinson's trace."""

    steps: int = 25
    probes: int = 4
    finest: float = BIN / math.sqrt(12)

    what = "-log2 of the probability flow's density (Runge-Kutta, Hutchinson's trace, normal prior at t = 1)"

    def density(self, denoiser, x, first, cond, noise):
        trace = Hutchinson(self.probes)
        return density(denoiser, x, steps=self.steps, trace=trace, first=first, cond=cond, noise=noise)


@dataclass(frozen=True)
class ByMmse(Dequantised):
    """The I-MMSE integral."""

    steps: int = 100
    draws: int = 2
    finest: float = BIN / math.sqrt(12)

    what = "I-MMSE integral of the squared error (-log2 p for an exact denoiser)"

    def density(self, denoiser, x, first, cond, noise):
        return mmse(denoiser, x, evaluations=self.steps, first=first, draws=self.draws, cond=cond, noise=noise)


@dataclass(frozen=True)
class Score:
    """Bits per dimension over n pictures.

    bits: the mean. error: its standard error over the pictures, which holds the estimate's own noise. own: the part of
    `error` that is the estimate's own random draws. terms: the bound's terms by name, which add up to `bits`; empty
    for densities. pictures: each picture's bits per dimension.
    """

    n: int
    bits: float
    error: float
    own: float
    definition: str
    terms: Mapping[str, float]
    pictures: tuple[float, ...]

    def lines(self) -> list[str]:
        """Plain text, for a terminal."""
        rows = [("bits per dimension", self.bits, f"s.e. {self.error:.4f}, of which the estimate's own {self.own:.4f}")]
        rows += [(f"  {name}", value, "") for name, value in self.terms.items()]
        table = [f"{name:<20} {value:9.4f}  {words}".rstrip() for name, value, words in rows]
        return [*table, f"{self.n} pictures; {self.definition}"]

    def to_dict(self) -> dict:
        """Plain numbers and strings for JSON."""
        return {**asdict(self), "pictures": list(self.pictures)}


def score(
    denoiser: Denoiser,
    x: Tensor,
    method: PixelScore,
    *,
    cond: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    batch: int = 64,
    on_step: Callable[[int, int], None] | None = None,
) -> Score:
    """Bits per dimension of pictures x (n, C, H, W), pixels of 256 levels in [-1, 1], in batches of at most `batch`.

    A picture's figure depends on the seed and its place in x, not on the batch. on_step is told (done, n).

    Raises `UserError` for less than two pictures, for pixels that are not 8-bit ones, and as the method does.
    """
    if len(x) < 2:
        raise UserError(f"A score needs at least 2 pictures for its standard error, not {len(x)}.")
    if batch < 1:
        raise UserError(f"A batch has at least one picture, not {batch}.")
    DiscretisedGaussian().check(x)
    device = next((p.device for p in denoiser.parameters()), x.device)
    found = []
    for low in range(0, len(x), batch):
        index = torch.arange(low, min(low + batch, len(x)))
        part = {name: value[index].to(device) for name, value in (cond or {}).items()}
        found.append(method(denoiser, x[index].to(device), part or None, Noise(seed, index)))
        if on_step is not None:
            on_step(int(index[-1]) + 1, len(x))
    bits = torch.cat([one.bits.cpu() for one in found])
    unit = math.log(2) * flat(x).shape[1]
    own = torch.cat([one.error.cpu() for one in found]).square().sum().sqrt() / (len(x) * unit)
    return Score(
        n=len(x),
        bits=float(bits.mean()),
        error=float(bits.std() / math.sqrt(len(x))),
        own=float(own),
        definition=method.definition,
        terms=_terms(found, unit * len(x)),
        pictures=tuple(bits.tolist()),
    )


def _terms(found: list[LogLikelihood], unit: float) -> dict[str, float]:
    """The mean terms of the bound, as bits per dimension."""
    if not isinstance(found[0], Bound):
        return {}
    terms = {
        "reconstruction": -sum(float(one.reconstruction.sum()) for one in found),
        "denoising": sum(float(one.denoising.sum()) for one in found),
        "prior": sum(float(one.prior.sum()) for one in found),
    }
    return {name: value / unit for name, value in terms.items()}
