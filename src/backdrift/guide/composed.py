"""Several conditions at once: and, not, more of one and less of another.

    D = D_0 + sum_i w_i (D_i - D_0),      D_0 without any of them

At every noise level this is the score of p_t (p_t(. | c_1) / p_t)^w_1 (p_t(. | c_2) / p_t)^w_2 ..: w_i = 1 is "and", a
negative weight is "not". At t = 0 that is the law one means (with independent conditions, p(x | c_1, c_2)), but between
it is not the noised version of that law, since the noised product is not the product of the noised. So a solver that
follows it ends at another law. Two samplers end where they should: `bd.solvers.AnnealedLangevin`, which settles in each
level's own law by small steps instead of following a flow (Du et al. 2023, arXiv:2302.11552, section 4), and
`guide.Particles`, which weighs. docs/measured.md says how far each is from the law.

Liu et al. 2022, arXiv:2206.01714, Eq. 11 and 13.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.guide.classifier_free import rows
from backdrift.guide.mixing import combine
from backdrift.posterior import Posterior
from backdrift.process.base import State


class Composed(Denoiser):
    """`denoiser` under several conditions, each with a weight.

    terms: pairs (condition, weight), such as ({"label": 3}, 1.0); a condition's values are numbers, or tensors with one
    entry or one per sample. What a call's own `cond` holds is given to every term and to D_0 too.

    Raises `UserError` without any term, and for a weight that is not finite.
    """

    def __init__(self, denoiser: Denoiser, terms: Sequence[tuple[Mapping, float]]):
        super().__init__()
        if not terms:
            raise UserError("Composed conditions need at least one term, such as ({'label': 3}, 1.0).")
        for _, weight in terms:
            if not math.isfinite(weight):
                raise UserError(f"The weight of a composed condition is a finite number, not {weight}.")
        self.denoiser, self.terms = denoiser, tuple((dict(cond), float(weight)) for cond, weight in terms)
        self.process, self.event_shape = denoiser.process, denoiser.event_shape
        self.sigma_data = getattr(denoiser, "sigma_data", 0.5)

    def forward(self, xt: State, t, cond=None):
        (_, base), *terms = self.parts(xt, t, cond)
        return combine(base, [belief for _, belief in terms], [weight for weight, _ in terms])

    def parts(self, xt: State, t, cond: Mapping | None = None) -> list[tuple[float, Posterior]]:
        """(weight, belief) of D_0 and of each term; the weights sum to 1."""
        count = len(next(iter(xt.values())) if isinstance(xt, Mapping) else xt)
        shared = dict(cond or {})
        parts = [(1 - sum(weight for _, weight in self.terms), self.denoiser(xt, t, shared))]
        for term, weight in self.terms:
            own = {name: rows(value, count) for name, value in term.items()}
            parts.append((weight, self.denoiser(xt, t, {**shared, **own})))
        return parts
