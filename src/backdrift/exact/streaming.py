"""A posterior over tens of thousands of points at the speed of two matrix products, in bounded memory.

With v the variance of x_t around alpha y_n, the posterior weight of point n is a softmax over n of

    l_n = log w_n - |x - alpha y_n|^2 / 2v = (alpha / v) x . y_n - (alpha^2 / 2v) |y_n|^2 + log w_n + (the row's own),

so that one product gives the logits and one more the mean. Blocks of points pass by and a running maximum, sum and
weighted sum are kept (an online softmax): no array ever has the points' number times the batch and the dimension.

Expanded squares cancel: in float32 the error of l_n grows like 1e-4 / v for pictures. So the few best points of each
block and sample are taken out of the float32 stream; their distances are recomputed by differences in float64, and
they have sums of their own in float64. The two sums are joined at the end. Where the points left in the stream still
carry weight, and the recomputed points show the stream's logits to be off by too much for that (`TOLERANCE`), the
sample is run again with eight times as many points recomputed, until all are: near-duplicates under tiny noise are
slow, not wrong.

The same pass gives the product of the posterior covariance V with a vector, which is all that differentiation needs:
the Jacobian of the mean is (alpha / v) V, and the gradient of the log-normaliser is (alpha mean - x) / v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import threshold_

BLOCK = 16384  # points per block
BEST = 4  # points per block and sample that are recomputed
TEMPORARY = 1 << 23  # elements of the temporary arrays
CHOSEN = 1 << 19  # of those, in the arrays of recomputed points: small enough to stay in the cache
TOLERANCE = 5e-5  # largest relative error of the streamed points' total weight, times their share
LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points (N, D) ready for streaming. log_weights: (N,) float64. labels: (N,) below classes, or None.

    centre: (D,) in the points' dtype. far: True where the points lie so far from the origin that each block is centred
    before its product (slower, as exact). half_norms: |y - centre|^2 / 2, or |y|^2 / 2 with the centre 0.
    """

    points: Tensor
    log_weights: Tensor
    labels: Tensor | None
    classes: int
    centre: Tensor
    half_norms: Tensor
    far: bool

    @classmethod
    def of(cls, points: Tensor, log_weights: Tensor, labels: Tensor | None, classes: int) -> Cloud:
        blocks = points.split(max(1, TEMPORARY // points.shape[1]))
        centre = (sum(block.double().sum(0) for block in blocks) / len(points)).to(points.dtype)
        spread = torch.cat([(block - centre).double().square().sum(1) for block in blocks])
        far = bool(centre.double().square().sum() > 4 * spread.mean())
        if not far:
            centre = torch.zeros_like(centre)
            spread = torch.cat([block.double().square().sum(1) for block in blocks])
        return cls(points, log_weights, labels, classes, centre, (spread / 2).to(points.dtype), far)

    def rows(self, part: slice) -> Tensor:
        return self.points[part] - self.centre if self.far else self.points[part]


class Query(NamedTuple):
    """Samples x (B, D) float64 with alpha and v, (B, 1) float64, and the wanted labels (B, 1) or None."""

    x: Tensor
    alpha: Tensor
    v: Tensor
    wanted: Tensor | None

    def pick(self, index: Tensor | slice) -> Query:
        wanted = None if self.wanted is None else self.wanted[index]
        return Query(self.x[index], self.alpha[index], self.v[index], wanted)


class Sums:
    """The running sums of an online softmax: shift (B, 1), total (B, 1) and rows (B, D), the weighted sum of rows."""

    def __init__(self, count: int, size: int, dtype: torch.dtype, device: torch.device):
        self.shift = torch.full((count, 1), LOWEST, dtype=dtype, device=device)
        self.total = torch.zeros(count, 1, dtype=dtype, device=device)
        self.rows = torch.zeros(count, size, dtype=dtype, device=device)

    def weigh(self, logits: Tensor) -> Tensor:
        """The logits (B, n), overwritten by their weights; what was summed before is rescaled to them."""
        shift = torch.maximum(self.shift, logits.amax(1, keepdim=True))
        scale = (self.shift - shift).exp()
        self.shift = shift
        # exp is ten times slower where it underflows: below e^-87, under any rounding, weights are set to 0 directly
        weights = threshold_(logits.sub_(shift).clamp_min_(-87.0).exp_(), 2e-38, 0.0)
        self.total = self.total * scale + weights.sum(1, keepdim=True)
        self.rows.mul_(scale)
        return weights


def _stream(cloud: Cloud, query: Query, best: int, along: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
    """(log sum_n exp(l_n) (B,), sum_n r_n g_n (y_n - centre) (B, D), doubtful (B,)) for the weights r of the softmax.

    g_n = y_n . u - base where along = (u (B, D), base (B, 1)) is given, and 1 otherwise.
    """
    x, alpha, v = query.x, query.alpha, query.v
    dtype, centre = cloud.points.dtype, cloud.centre.double()
    moved = x - alpha * centre
    # what |x|^2 contributes to l_n and the stream leaves out
    offset = moved.square().sum(1, keepdim=True) / (2 * v)
    probe, tilt = (moved * (alpha / v)).to(dtype), (alpha**2 / v).to(dtype)
    level = cloud.log_weights.max()
    log_weights = cloud.log_weights - level
    weighted = bool((log_weights != 0).any())
    if along is not None:
        u, base = along
        coarse_u, coarse_base = u.to(dtype), (base - u @ centre[:, None]).to(dtype)
    coarse = Sums(*x.shape, dtype, x.device)
    fine = Sums(*x.shape, torch.float64, x.device)
    error = torch.zeros_like(v)
    for start in range(0, len(cloud.points), BLOCK):
        part = slice(start, start + BLOCK)
        rows = cloud.rows(part)
        logits = probe @ rows.mT
        logits.addcmul_(tilt, cloud.half_norms[part], value=-1)
        if weighted:
            logits += log_weights[part].to(dtype)
        if query.wanted is not None:
            logits.masked_fill_((cloud.labels[part] != query.wanted) & (query.wanted != cloud.classes), -torch.inf)
        guess, index = logits.topk(min(best, logits.shape[1]), 1)
        logits.scatter_(1, index, -torch.inf)
        weights = coarse.weigh(logits)
        if along is not None:
            weights = weights * (coarse_u @ rows.mT - coarse_base)
        coarse.rows.addmm_(weights, rows)

        step = max(1, CHOSEN // x.numel())
        for few, number in zip(guess.double().split(step, 1), (index + start).split(step, 1), strict=True):
            chosen = cloud.points[number].double()
            gap = torch.addcmul(x[:, None], alpha[:, None], chosen, value=-1)
            exact = -torch.einsum("bkd,bkd->bk", gap, gap) / (2 * v) + log_weights[number]
            exact = torch.where(torch.isneginf(few), -torch.inf, exact)
            # where both are -inf the difference is NaN, and says nothing
            wrong = (few - offset - exact).abs().nan_to_num(0.0)
            error = torch.maximum(error, wrong.amax(1, keepdim=True))
            weights = fine.weigh(exact)
            if along is not None:
                weights = weights * (torch.einsum("bkd,bd->bk", chosen, u) - base)
            fine.rows += torch.einsum("bk,bkd->bd", weights, chosen) - weights.sum(1, keepdim=True) * centre

    shift = coarse.shift.double() - offset
    top = torch.maximum(shift, fine.shift)
    a, b = (shift - top).exp(), (fine.shift - top).exp()
    rest = a * coarse.total
    total = rest + b * fine.total
    doubtful = rest / total * torch.expm1((2 * error).clamp_max(700.0)) > TOLERANCE
    joined = (a * coarse.rows + b * fine.rows) / total
    return (top + total.log() + level).squeeze(1), joined, doubtful.squeeze(1)


def _careful(cloud: Cloud, query: Query, along: tuple[Tensor, Tensor] | None = None, best: int = BEST) -> list[Tensor]:
    """`_stream` without doubts, in groups of samples of bounded size."""
    if len(query.x) == 1:
        # a product with a single row is summed in another order, with ten times the error: it gets company
        twice = query.x.new_zeros(2, dtype=torch.long)
        pair = None if along is None else tuple(p[twice] for p in along)
        return [p[:1] for p in _careful(cloud, query.pick(twice), pair, best)]
    size = max(64, TEMPORARY // (min(BLOCK, len(cloud.points)) + best * query.x.shape[1]))
    groups: list[list[Tensor]] = []
    for i in range(0, len(query.x), size):
        group = slice(i, i + size)
        here, there = query.pick(group), None if along is None else tuple(p[group] for p in along)
        *sums, doubtful = _stream(cloud, here, best, there)
        if best < min(BLOCK, len(cloud.points)) and bool(doubtful.any()):
            again = doubtful.nonzero().squeeze(1)
            along_again = None if there is None else tuple(p[again] for p in there)
            better = _careful(cloud, here.pick(again), along_again, 8 * best)
            sums = [old.index_copy(0, again, new) for old, new in zip(sums, better, strict=True)]
        groups.append(sums)
    return [torch.cat(parts) for parts in zip(*groups, strict=True)]


class Posterior(torch.autograd.Function):
    """(log sum_n w_n exp(-|x - alpha y_n|^2 / 2v) (B,), sum_n r_n y_n (B, D)), in float64, differentiable once in x.

    x: (B, D) float64. alpha, v: (B, 1) float64. wanted: (B,) labels or None.
    """

    @staticmethod
    def forward(x: Tensor, cloud: Cloud, alpha: Tensor, v: Tensor, wanted: Tensor | None) -> tuple[Tensor, Tensor]:
        log_total, mean = _careful(cloud, Query(x, alpha, v, None if wanted is None else wanted[:, None]))
        return log_total, mean + cloud.centre.double()

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.cloud, *rest = inputs
        ctx.save_for_backward(x, output[1], *rest)
        ctx.save_for_forward(x, output[1], *rest)

    @staticmethod
    def _jacobian(ctx, u: Tensor) -> Tensor:
        """(alpha / v) V u, with V the covariance of the points under the posterior."""
        x, mean, alpha, v, wanted = ctx.saved_tensors
        query = Query(x, alpha, v, None if wanted is None else wanted[:, None])
        # sum r (y - mean)(y - mean) . u is sum r y (y - mean) . u
        _, product = _careful(ctx.cloud, query, (u.double(), (mean * u).sum(1, keepdim=True)))
        return alpha / v * product

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_log: Tensor, g_mean: Tensor):
        x, mean, alpha, v, _ = ctx.saved_tensors
        grad = g_log[:, None] * (alpha * mean - x) / v
        if bool((g_mean != 0).any()):
            grad = grad + Posterior._jacobian(ctx, g_mean)
        return grad, None, None, None, None

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_):
        x, mean, alpha, v, _ = ctx.saved_tensors
        return ((alpha * mean - x) / v * tangent).sum(1), Posterior._jacobian(ctx, tangent)
