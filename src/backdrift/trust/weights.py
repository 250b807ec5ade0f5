"""Path weights: how wrong a guided chain is, and its draws put right, without knowing the truth.

A guided sampler that is a chain (see `kernel`) proposes whole paths. The prior's own chain, measured at its end, gives
such a path the density p(x_1) prod p(x_next | x) p(y | x_0); the ratio of the two is the weight

    log W = log p(y | x_0) + sum_n log N(x_next; prior's mean, std^2) - log N(x_next; guided mean, std^2),

with E[W] = p(y) exactly (the chain's own p(y)), E[log W] <= log p(y), and a variance of log W that is zero if, and only
if, the sampler is the exact posterior's chain. So the gap between log E[W] and E[log W], the effective sample size and
the tail of the weights say how far a sampler is off where no truth is known, with a trained network as well; and draws
chosen by their weights are right as their number grows. In many dimensions weights spread; the mean of log W still
ranks samplers, and the sum's terms say when on the way the fault lies.

The last step is taken without guidance, which makes it the same in both chains: it adds no noise, and would otherwise
have no density. Wu et al. 2023, arXiv:2306.17775, Eq. 8 and 9, without resampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.guide.particles import systematic
from backdrift.inverse.measurement import Measurement
from backdrift.inverse.sampler import PosteriorSampler, Steered
from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.sample.plan import Step
from backdrift.trust.kernel import Kernel

PATHS = 1 << 22  # numbers in the states of the paths that run at once
HEAVY = 0.7  # tail index beyond which means of weights cannot be believed; Vehtari et al. 2024, arXiv:1507.02646


@dataclass(frozen=True, eq=False)
class PathWeights:
    """draws: (n, *event). log_weights: (n,) float64. steps: (N - 1, n), each step's part. times: (N - 1,)."""

    draws: Tensor
    log_weights: Tensor
    steps: Tensor
    times: tuple[float, ...]

    @property
    def log_evidence(self) -> float:
        """log mean W, which estimates log p(y)."""
        return float(self.log_weights.logsumexp(0)) - math.log(len(self.log_weights))

    @property
    def evidence_error(self) -> float:
        """The standard error of `log_evidence`, by the delta method; too small where the tail is heavy."""
        w = (self.log_weights - self.log_weights.max()).exp()
        return float(w.std() / w.mean()) / len(w) ** 0.5

    @property
    def elbo(self) -> float:
        """Mean log W, a bound from below on log p(y)."""
        return float(self.log_weights.mean())

    @property
    def gap(self) -> float:
        """log evidence less the bound, in nats: the divergence of the paths from the exact ones, 0 if exact."""
        return self.log_evidence - self.elbo

    @property
    def std(self) -> float:
        """Standard deviation of log W, 0 if exact."""
        return float(self.log_weights.std())

    @property
    def share(self) -> float:
        """Effective sample size over n."""
        weights = self.log_weights.log_softmax(0)
        return float(torch.exp(-torch.logsumexp(2 * weights, 0))) / len(weights)

    @property
    def tail(self) -> float:
        """Pareto tail index of the weights; above 0.7 their mean cannot be believed."""
        return pareto(self.log_weights)

    @property
    def from_prior(self) -> float:
        """Divergence of the guided paths from the prior's, in nats."""
        return -float(self.steps.sum(0).mean())

    @property
    def faults(self) -> Tensor:
        """(N - 1,) variance that each step's part adds to log W: where on the way the fault lies."""
        return self.steps.var(1)

    def line(self) -> str:
        """The figures in one line."""
        tail = "heavy, not to be believed" if self.tail > HEAVY else "light"
        return (
            f"log evidence {self.log_evidence:.3f} +- {self.evidence_error:.3f}, bound {self.elbo:.3f}, gap "
            f"{self.gap:.2f} nats, effective share {self.share:.3f}, tail {self.tail:.2f} ({tail})"
        )


@torch.no_grad()
def path_weights(
    sampler: Steered, denoiser: Denoiser, measurement: Measurement, y: Tensor, n: int, *, steps: int, noise: Noise
) -> PathWeights:
    """The weights of n guided paths; one more call of the denoiser, unguided, in each step.

    y: (*shape), or (n, *shape) for one measurement per path.

    Raises `UserError` for a sampler that is no chain of Gaussian kernels, such as a deterministic one.
    """
    kernel = Kernel.of(sampler, denoiser.process, steps)
    if kernel is None:
        raise UserError(
            f"{type(sampler).__name__} on this solver is no chain of Gaussian steps, so its paths have no weights; "
            "guided samplers on DDIM(eta=1.0) or DDPM() are."
        )
    # what the last step that was looked at left: its number, state, guided mean and prior mean
    last: list = []
    parts, N = [], len(kernel.std)

    def close(following: Tensor) -> None:
        n_, state, guided, prior = last
        std, gain = kernel.std[n_], kernel.gain[n_]
        xi = flat(following - kernel.keep[n_] * state - gain * guided).double() / std
        shift = flat(guided - prior).double() * (gain / std)
        # log N(prior) - log N(guided) at xi
        parts.append(-(xi * shift).sum(1) - shift.square().sum(1) / 2)

    def on_step(step: Step) -> None:
        nonlocal last
        if last:
            close(step.state)
        last = [step.n, step.state, step.mean, denoiser(step.state, step.t).mean.to(step.mean)]

    out = sampler(denoiser, measurement, y, n, steps=steps, noise=noise, on_step=on_step)
    if kernel.std[-1] > 0:
        close(out)
    else:
        out = kernel.keep[-1] * last[1] + kernel.gain[-1] * last[3]
    each = torch.stack(parts) if parts else torch.zeros(0, n, dtype=torch.float64)
    total = each.sum(0) + measurement.log_likelihood(out, y).double()
    return PathWeights(out, total, each, kernel.times[: N if kernel.std[-1] > 0 else N - 1])


@dataclass(frozen=True, kw_only=True)
class Reweighted(PosteriorSampler):
    """Draws of a guided chain put right: of `particles` paths per draw, one is taken by its path weight.

    base: a guided sampler that is a chain. Each draw owns its particles, so that it depends on no other; the bias falls
    as 1 / particles, and how fast is a matter of `PathWeights.share`. Costs `particles` times the base.
    """

    base: Steered
    particles: int = 32

    def __post_init__(self):
        if self.particles < 2:
            raise UserError(f"Reweighting needs at least 2 particles, not {self.particles}.")

    def __call__(self, denoiser, measurement, y, n, *, steps, noise, on_step=None):
        K, y = self.particles, measurement.batched(y)
        size = max(1, PATHS // (K * math.prod(denoiser.event_shape)))
        chosen = []
        for low in range(0, n, size):
            index = noise.index[low : low + size]
            own = Noise(noise.seed, (index[:, None] * K + torch.arange(K)).flatten(), noise.stream)
            many = y if len(y) == 1 else y[low : low + size].repeat_interleave(K, 0)
            found = path_weights(self.base, denoiser, measurement, many, len(own.index), steps=steps, noise=own)
            weights = found.log_weights.view(-1, K).softmax(1)
            picking = Noise(noise.seed, index, noise.stream).at("pick")
            pick = systematic(weights, picking.uniform(weights[:, 0]), 1)[:, 0]
            chosen.append(found.draws.view(len(index), K, *denoiser.event_shape)[torch.arange(len(index)), pick])
        return torch.cat(chosen)


def pareto(log_weights: Tensor) -> float:
    """Tail index k of the weights' upper tail, by a generalised Pareto law fitted to the largest min(n / 5, 3 sqrt n).

    NaN for less than 25 weights. Zhang and Stephens 2009, doi:10.1198/tech.2009.08017, section 4.
    """
    n = len(log_weights)
    count = int(min(n / 5, 3 * n**0.5))
    if count < 5:
        return math.nan
    top = (log_weights - log_weights.max()).sort().values[-count - 1 :].exp()
    x = top[1:] - top[0]
    x = x[x > 0]
    m = len(x)
    if m < 5:
        return -math.inf  # equal weights have no tail
    grid = 30 + int(m**0.5)
    quartile = x[max(0, int(m / 4 + 0.5) - 1)]
    at = torch.arange(1, grid + 1, dtype=torch.float64)
    theta = 1 / x[-1] + (1 - (grid / (at - 0.5)).sqrt()) / (3 * quartile)
    k = torch.log1p(-theta[:, None] * x).mean(1)
    profile = m * (torch.log(-theta / k) - k - 1)
    theta = float((profile.softmax(0) * theta).sum())
    k = float(torch.log1p(-theta * x).mean())
    # a weak prior at 1/2, as for few weights; Vehtari et al. 2024, appendix C
    return (k * m + 5) / (m + 10)
