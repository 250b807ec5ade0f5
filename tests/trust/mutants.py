"""Samplers that are broken on purpose, each by one mistake that somebody has made, beside the exact one."""

from dataclasses import dataclass

import torch

import backdrift as bd
from backdrift.exact import Mixture
from backdrift.inverse import Exact, GaussianNoise, Linear
from backdrift.inverse.guided import Guidance
from backdrift.noise import Noise
from backdrift.sample import sample

ANCESTRAL = Exact(solver=bd.solvers.DDIM(eta=1.0))


def posterior(denoiser, measurement, y):
    return denoiser.distribution.given(measurement, y)


def draw(law, n, noise):
    return law.draw(n, noise.seed)


@dataclass(frozen=True, kw_only=True)
class Scaled(Guidance):
    """The exact guidance times a factor: -1 is the wrong sign, .5 half of it, 2 twice."""

    factor: float

    def gradient(self, at):
        raise AssertionError  # never asked: `guide` knows the exact answer

    def guide(self, denoiser, measurement, y, noise=None):
        exact = posterior(denoiser, measurement, measurement.batched(y)[0]).denoiser(denoiser.process)
        return Mixed(denoiser, exact, self.factor)


class Mixed(bd.Denoiser):
    def __init__(self, prior, exact, factor):
        super().__init__()
        self.prior, self.exact, self.factor = prior, exact, factor
        self.process, self.event_shape = prior.process, prior.event_shape

    def forward(self, xt, t, cond=None):
        return self.prior(xt, t, cond).lerp(self.exact(xt, t, cond), self.factor)


@dataclass(frozen=True, kw_only=True)
class BatchNormDPS(Guidance):
    """DPS with the norm taken over the whole batch, as one library has it."""

    def gradient(self, at):
        gap = (at.y - at.measurement.forward(at.mean)).norm()
        return -20 * torch.autograd.grad(gap, at.x)[0]


def dropped_mode(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    law = posterior(denoiser, measurement, y)
    weights = law.weights.clone()
    weights[weights.argsort()[1]] = 0
    kept = Mixture(weights, law.means, law.eigenvalues)
    return draw(kept, n, noise)


def prior_draws(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    return draw(denoiser.distribution, n, noise)


def stops_early(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    exact = posterior(denoiser, measurement, y).denoiser(denoiser.process)
    plan = bd.solvers.DDIM(eta=1.0).plan(denoiser.process.schedule, torch.linspace(1, 0.15, steps + 1))
    x1 = denoiser.process.prior(torch.zeros(n, *denoiser.event_shape).double(), noise.at("prior"))
    return plan.run(exact, x1, noise=noise, on_step=on_step)


def wrong_noise_level(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    other = Linear(measurement.A, 2 * measurement.noise.std)
    return ANCESTRAL(denoiser, other, y, n, steps=steps, noise=noise, on_step=on_step)


def final_noise(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    x = ANCESTRAL(denoiser, measurement, y, n, steps=steps, noise=noise, on_step=on_step)
    return x + 0.35 * noise.at("final").normal(x)


def posterior_mean(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    law = posterior(denoiser, measurement, y)
    return (law.weights @ law.means).expand(n, -1).clone()


def most_probable(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    law = posterior(denoiser, measurement, y)
    return law.means[law.weights.argmax()].expand(n, -1).clone()


def transposed_operator(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    other = Linear(measurement.A.mT.contiguous(), measurement.noise)
    return ANCESTRAL(denoiser, other, y, n, steps=steps, noise=noise, on_step=on_step)


def repeated(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    few = draw(posterior(denoiser, measurement, y), max(1, n // 4), noise)
    return few.repeat(5, 1)[:n]


def chained(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    """A Markov chain that mixes slowly: right in the long run, dependent draws."""
    x = draw(posterior(denoiser, measurement, y), n, noise)
    moves = noise.at("move").uniform(torch.empty(n)) < 0.3
    last = torch.where(moves, torch.arange(n), 0).cummax(0).values
    return x[last] + 1e-6 * noise.at("jitter").normal(x)


def narrow(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    law = posterior(denoiser, measurement, y)
    return draw(Mixture(law.weights, law.means, 0.5 * law._covariances()), n, noise)


def tempered(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    """The weights of the modes taken to a power: their log odds are off by a third."""
    law = posterior(denoiser, measurement, y)
    return draw(Mixture(law.weights**2, law.means, law._covariances()), n, noise)


def averages(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    """Each draw the mean of two: between the modes as often as not."""
    law = posterior(denoiser, measurement, y)
    return (draw(law, n, noise) + draw(law, n, Noise(noise.seed ^ 77, noise.index))) / 2


def forgets_y(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    """Always answers for the same y: right on the average, wrong for each."""
    return draw(posterior(denoiser, measurement, torch.zeros_like(y)), n, noise)


def shifted_clock(denoiser, measurement, y, n, *, steps, noise, on_step=None):
    """The denoiser is told the time of the next state, as where sigma is taken at the wrong end of a step."""
    exact = posterior(denoiser, measurement, y).denoiser(denoiser.process)

    class Late(bd.Denoiser):
        process, event_shape = exact.process, exact.event_shape

        def forward(self, xt, t, cond=None):
            return exact(xt, max(0.0, t - 0.08), cond)

    return sample(
        Late(), shape=(n, *exact.event_shape), steps=steps, solver=bd.solvers.DDIM(eta=1.0), seed=noise.seed
    ).double()


MUTANTS = {
    "wrong sign": Scaled(factor=-1.0),
    "half of the guidance": Scaled(factor=0.5),
    "twice the guidance": Scaled(factor=2.0),
    "norm over the batch": BatchNormDPS(),
    "dropped mode": dropped_mode,
    "prior draws": prior_draws,
    "stops early": stops_early,
    "wrong noise level": wrong_noise_level,
    "final noise added": final_noise,
    "posterior mean": posterior_mean,
    "most probable": most_probable,
    "transposed operator": transposed_operator,
    "repeated draws": repeated,
    "chained draws": chained,
    "half the variance": narrow,
    "tempered weights": tempered,
    "averages of draws": averages,
    "forgets y": forgets_y,
    "clock off by a step": shifted_clock,
}

A = torch.tensor([[1.0, 0.8], [0.0, 0.6]]).double()
PRIOR = Mixture(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[-1.2, 0.0], [1.2, 0.6], [0.0, -1.2]]).double(), 0.16)
SEEN = Linear(A, GaussianNoise(0.7))
Y = torch.tensor([-0.4, 0.3]).double()
