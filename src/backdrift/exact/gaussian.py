"""One Gaussian, N(mu, S): the mixture of one component, whose probability flow is a closed form as well.

In the eigenbasis of S the marginal at any time is N(alpha mu, c), c = alpha^2 l + sigma^2, coordinate by coordinate,
and the flow keeps each coordinate at its quantile: z_s = sqrt(c_s / c_t) z_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backdrift.exact.mixture import Mixture


class Gaussian(Mixture):
    """N(mean, cov). mean: (*event); cov: variances as a number, (*event) or (D, D). Raises `UserError` as `Mixture`."""

    def __init__(self, mean: Tensor, cov: float | Tensor):
        mean, cov = torch.as_tensor(mean), torch.as_tensor(cov)
        super().__init__(torch.ones(1), mean[None], cov[None])

    def flow(self, x, start, end, wanted, steps):
        (a, s), (a_end, s_end) = start, end
        everything = slice(None)
        z = self._rotate(x[:, None] - a[:, None, None] * self.means, everything)
        before, after = (
            (p**2)[:, None, None] * self.eigenvalues + (q**2)[:, None, None] for p, q in ((a, s), (a_end, s_end))
        )
        gain = torch.where(before > 0, after / before, 0.0).sqrt()
        return a_end[:, None] * self.means + self._gather(gain * z, everything)
