"""Randomness keyed by sample: sample i under seed s is the same in any batch, in any order, on any machine.

A `Noise` names a batch of samples (their numbers, `index`) and a stream. Every draw is a pure function of
(seed, stream, sample number): nothing advances, nothing is remembered. The key is a 64-bit hash of the three, so that
neighbouring seeds, steps and samples share nothing.

Normal draws come from one of two sources, chosen by the size of an event alone:

* up to `SMALL` elements: hashed counters through the Box-Muller transform, vectorised over the whole batch, on the
  batch's own device;
* beyond: one Mersenne-Twister stream per sample on the CPU, then moved, at the speed of `torch.randn`. torch keeps only
  the low 32 bits of a seed there, so the 32 bits are made a bijection of the sample number within each stream: two of
  the first 2^32 samples never share their noise.

Normal draws are made in float32 and uniform ones in float64, then converted: float32 and float64 runs see the same
noise.

A Brownian path is drawn by `brownian`: the increments over a plan's noise intervals, as exact bridges of one path, so
that the same seed with every interval halved follows the same path (Lévy's construction).
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

SMALL = 1024
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """A bijective hash of 64 bits (Stafford's variant 13 of the MurmurHash3 finaliser, as in SplitMix64)."""
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix(values: Tensor) -> Tensor:
    """`mix` of an int64 tensor, in place (int64 arithmetic wraps; its right shift needs the sign bits masked)."""
    values += _signed(_GAMMA)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        values ^= (values >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            values *= _signed(factor)
    return values


@lru_cache
def _word(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, eq=False)
class Noise:
    """A keyed source of draws for the samples `index` (B,) of `seed`.

    index: LongTensor (B,) on the CPU, any numbers in any order. stream: the hash of what the draw is for.
    """

    seed: int
    index: Tensor
    stream: int = 0

    @classmethod
    def of(cls, seed: int, count: int) -> Noise:
        """The samples 0..count-1 of `seed`."""
        return cls(seed, torch.arange(count))

    def at(self, *names: int | str) -> Noise:
        """The same samples on another stream, named by integers (a step) or words (a field)."""
        stream = self.stream
        for name in names:
            if isinstance(name, str):
                name = _word(name)
            # hashed twice: a stream and a name must not commute
            stream = mix(mix(stream) ^ (operator.index(name) & _MASK))
        return Noise(self.seed, self.index, stream)

    def _root(self) -> int:
        return mix(mix(mix(self.seed & _MASK) ^ self.stream))

    def _keys(self, device: torch.device) -> Tensor:
        return _mix(self.index.to(device) ^ _signed(self._root()))

    def _words(self, size: int, device: torch.device) -> Tensor:
        """(B, size) uniform 32-bit words in int32."""
        pairs = (size + 1) // 2
        counters = torch.arange(1, pairs + 1, device=device) * _signed(_GAMMA)
        words = _mix(self._keys(device)[:, None] + counters).view(torch.int32)
        return words[:, :size]

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform in (0, 1), of like's shape (B, *event), device and dtype (float32 or float64)."""
        self._check(like)
        size = math.prod(like.shape[1:])
        words = self._words(size, like.device).double()
        # at least 2^-33 by the half; at most 1 - 2^-24, which float32 does not round up to 1
        return ((words + 2.0**31 + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24).to(like.dtype).view(like.shape)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, of like's shape (B, *event), device and dtype."""
        self._check(like)
        size = math.prod(like.shape[1:])
        if size <= SMALL:
            return self._box_muller(size, like.device).to(like.dtype).view(like.shape)
        draw = self._streams(like.shape)
        return draw if draw.dtype == like.dtype and draw.device == like.device else draw.to(like)

    def _box_muller(self, size: int, device: torch.device) -> Tensor:
        pairs = (size + 1) // 2
        words = self._words(2 * pairs, device).float().view(len(self.index), 2, pairs)
        # |word| 2^-31 is uniform in [0, 1] and finest near 0, where the tail is; 2^-33 keeps the logarithm finite
        radius = words[:, 0].abs().mul_(2.0**-31).add_(2.0**-33).log_().mul_(-2).sqrt_()
        turn = words[:, 1] * (math.pi * 2.0**-31)
        return torch.cat([radius * turn.cos(), radius * turn.sin()], 1)[:, :size]

    def _streams(self, shape: torch.Size) -> Tensor:
        root = self._root()
        out = torch.empty(shape)
        generator = torch.Generator()
        for row, i in zip(out.unbind(0), self.index.tolist(), strict=True):
            # a bijection of 32-bit sample numbers; the rest of a longer number enters through the root
            low, high = i & 0xFFFFFFFF, i >> 32
            key = mix(root ^ high) if high else root
            word = ((low ^ (key & 0xFFFFFFFF)) * 0x9E3779B1) & 0xFFFFFFFF
            generator.manual_seed(word ^ (word >> 15) ^ (key >> 32))
            row.normal_(generator=generator)
        return out

    def _check(self, like: Tensor) -> None:
        if like.shape[:1] != self.index.shape:
            raise ValueError(f"{len(self.index)} samples cannot draw for a batch of shape {tuple(like.shape)}.")


class BrownianPath:
    """Increments of a Brownian path over consecutive intervals, as exact bridges of one path (Lévy's construction).

    clock: M + 1 monotone values; increment n is W(clock[n + 1]) - W(clock[n]), of variance |clock[n + 1] - clock[n]|.
    With M = m 2^k, m odd, the path is drawn first over m stretches and each stretch is then halved k times. So a clock
    with every interval cut in two gives the same path, exactly, at one draw per increment.

    `draw` yields the increments divided by `scales` (M,), which saves an operation on each.
    """

    def __init__(self, clock: Sequence[float]):
        self._clock = clock
        count = len(clock) - 1
        self._stretches = count
        while self._stretches and self._stretches % 2 == 0:
            self._stretches //= 2
        span = count // self._stretches if count else 0
        self.scales: list[float] = []
        # for each increment: how to halve what is left of its stretch until the increment is reached
        self._program: list[list[tuple[int, int, float, float]]] = []
        for place in range(self._stretches):
            self._halve(0, place, span, math.sqrt(self._length(place * span, (place + 1) * span)), [])

    def _length(self, low: int, high: int) -> float:
        # the least positive length keeps the shares of empty intervals finite
        return max(abs(self._clock[high] - self._clock[low]), 1e-30)

    def _halve(self, level: int, place: int, span: int, scale: float, before: list) -> None:
        if span == 1:
            self._program.append(before)
            self.scales.append(scale)
            return
        low, mid, high = place * span, place * span + span // 2, (place + 1) * span
        a, b = self._length(low, mid), self._length(mid, high)
        # left = share total + std normal and right = total - left, where each is its scale times its tensor
        share, std = a / (a + b), math.sqrt(a / (a + b) * b)
        split = (level + 1, place, share * scale / std, -std / scale)
        self._halve(level + 1, 2 * place, span // 2, std, [*before, split])
        self._halve(level + 1, 2 * place + 1, span // 2, scale, [])

    def draw(self, noise: Noise, like: Tensor) -> Iterator[Tensor]:
        """The M increments over `scales`, in order, of like's shape; each is the caller's own."""
        source, stretch = noise.at("brownian", self._stretches), 0
        waiting: list[Tensor] = []
        for splits in self._program:
            if waiting:
                total = waiting.pop()
            else:
                total, stretch = source.at(0, stretch).normal(like), stretch + 1
            for level, place, share, back in splits:
                left = source.at(level, place).normal(like).add_(total, alpha=share)
                waiting.append(total.add_(left, alpha=back))
                total = left
            yield total


def brownian(noise: Noise, clock: Sequence[float], like: Tensor) -> Iterator[Tensor]:
    """The increments of `BrownianPath` themselves: M tensors of like's shape, in order."""
    path = BrownianPath(clock)
    return (x.mul_(scale) for x, scale in zip(path.draw(noise, like), path.scales, strict=True))
