"""Times drawn where the losses are large, without changing what is minimised.

The quantiles [0, 1] of a law of times are cut into equal bins. A bin is drawn in proportion to the root mean square of
the losses seen there lately, and a loss from a bin drawn c times as often as the law says counts 1 / c: the mean stays
what it was, and among all draws of bins this one has the least variance. Nichol and Dhariwal 2021, arXiv:2102.09672,
Eq. 18, with bins for their discrete times and a fading memory for their last ten losses.

What is remembered is a small table, which a checkpoint holds: a run that stops continues with the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.objective.times import Drawn, Times, Uniform, spread

FIRST = 10  # losses in every bin before anything but the law itself is drawn, as in the paper


@kind("times.ByLoss")
@dataclass(frozen=True)
class ByLoss(Times):
    """`base`, redistributed over its `bins` quantiles by the losses.

    halflife: in pictures, of the memory. floor: the share of the draws that ignores the losses, so that no loss counts
    more than 1 / floor.
    """

    base: Times = field(default_factory=Uniform)
    bins: int = 64
    halflife: int = 10_000
    floor: float = 0.05

    def __post_init__(self):
        if self.bins < 2 or self.halflife < 1 or not 0 < self.floor <= 1:
            raise UserError("ByLoss needs at least 2 bins, a positive halflife and a floor in (0, 1].")
        if isinstance(self.base, ByLoss):
            raise UserError("ByLoss redistributes a plain law of times, not another ByLoss.")

    def quantile(self, u, schedule):
        return self.base.quantile(u, schedule)

    def density(self, t, schedule):
        return self.base.density(t, schedule)

    def memory(self):
        """(bins, 3): the faded sum of squares and number of the losses in each bin, and their number in all."""
        return torch.zeros(self.bins, 3, dtype=torch.float64)

    def chances(self, memory):
        """The probability of each bin, (bins,)."""
        squares, faded, seen = memory.T
        size = torch.ones_like(seen) if bool((seen < FIRST).any()) else (squares / faded).sqrt()
        if not float(size.sum()) > 0:
            size = torch.ones_like(size)
        return self.floor / self.bins + (1 - self.floor) * size / size.sum()

    def draw(self, noise, schedule, memory):
        u, chances = spread(noise), self.chances(memory)
        ends = chances.cumsum(0)
        chosen = torch.searchsorted(ends, u, right=True).clamp_max(self.bins - 1)
        within = (u - ends[chosen]) / chances[chosen] + 1
        place = ((chosen + within.clamp(0, 1 - 1e-12)) / self.bins).clamp(2.0**-53, 1 - 2.0**-53)
        return Drawn(self.within(place, schedule), 1 / (self.bins * chances[chosen]), place)

    def learn(self, memory, place, losses):
        bins = (place * self.bins).long().clamp_max(self.bins - 1)
        keep = 0.5 ** (len(losses) / self.halflife)
        square = losses.detach().double().cpu().square()
        rows = torch.stack([square, torch.ones_like(square), torch.ones_like(square)], 1)
        return (memory * torch.tensor([keep, keep, 1.0], dtype=torch.float64)).index_add(0, bins, rows)
