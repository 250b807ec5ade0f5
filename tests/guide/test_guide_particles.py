"""Composed conditions: how far a solver ends from the law that they suggest, and that weighted particles end there."""

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.guide import Composed, Particles
from backdrift.guide.particles import systematic
from backdrift.noise import Noise
from backdrift.process import Gaussian

MIXTURE = bd.exact.Mixture(
    torch.tensor([0.3, 0.7, 0.7, 0.3]).double(),
    torch.tensor([[-1.5], [0.5], [-1.2], [1.2]], dtype=torch.float64),
    torch.tensor([0.05, 0.3, 0.3, 0.05], dtype=torch.float64),
    labels=torch.tensor([0, 0, 1, 1]),
)
BOTH = [({"label": 0}, 2.0), ({"label": 1}, 2.0)]


def gap_to_the_product(solver, n, steps, schedule):
    """Largest gap of distribution functions between samples and (p(x | 0) p(x | 1))^2 p(x)^-3, on a line."""
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:, None]
    given = [MIXTURE.log_prob(grid, {"label": torch.full((4001,), i)}) for i in range(2)]
    density = (2 * given[0] + 2 * given[1] - 3 * MIXTURE.log_prob(grid)).exp()
    cumulative = density.cumsum(0) / density.sum()
    composed = Composed(MIXTURE.denoiser(Gaussian(schedule)), BOTH)
    x1 = composed.process.prior(torch.zeros(n, 1).double(), Noise.of(0, n).at("prior"))
    x = bd.sample(composed, x1, solver=solver, steps=steps).flatten().sort().values
    reached = torch.searchsorted(x, grid[:, 0], right=True) / n
    return float((reached - cumulative).abs().max())


@pytest.mark.parametrize("schedule", [bd.schedule.VP(), bd.schedule.EDM()])
def test_particles_end_in_the_product_and_a_solver_does_not(schedule):
    # 600 exact draws are off by .08 in one of a thousand cases
    assert gap_to_the_product(bd.solvers.DDIM(), 600, 60, schedule) > 0.12
    assert gap_to_the_product(Particles(16), 600, 60, schedule) < 0.08


def test_weights_are_flat_where_the_composition_is_a_noised_law():
    """One condition with weight 1 is the conditional model, whose noised law is itself."""
    from backdrift.guide.particles import weighted

    composed = Composed(MIXTURE.denoiser(Gaussian(bd.schedule.VP())), [({"label": 0}, 1.0)])
    x = torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, rate = weighted(composed, x, 0.4, {})
    torch.testing.assert_close(rate, torch.zeros(20).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(mean, MIXTURE.denoiser(Gaussian(bd.schedule.VP()))(x, 0.4, {"label": 0}).mean)


def test_weight_rate_closes_the_fokker_planck_equation():
    """d L / dt along the schedule, by finite differences, less what a noised law would have, is minus the rate."""
    from backdrift.guide.particles import weighted

    schedule, t, h = bd.schedule.EDM(), 0.5, 1e-5
    composed = Composed(MIXTURE.denoiser(Gaussian(schedule)), BOTH)
    denoiser = composed.denoiser

    def log_density(x, t):
        given = [denoiser.log_prob(x, t, {"label": torch.full((len(x),), i)}) for i in range(2)]
        return 2 * given[0] + 2 * given[1] - 3 * denoiser.log_prob(x, t)

    def slope(f, x, e=1e-4):
        return (f(x + e) - f(x - e)) / (2 * e), (f(x + e) - 2 * f(x) + f(x - e)) / e**2

    x = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None]
    first, second = slope(lambda z: log_density(z, t), x)
    sigma = [float(schedule.alpha_sigma(t + e)[1]) for e in (-h, 0.0, h)]
    # alpha = 1: a noised law obeys dL = (second + first^2) / 2 d sigma^2
    rise = (log_density(x, t + h) - log_density(x, t - h)) / (sigma[2] ** 2 - sigma[0] ** 2)
    mismatch = (rise - (second + first**2) / 2) * sigma[1] ** 2
    rate = weighted(composed, x, t, {})[1]
    torch.testing.assert_close(mismatch, -rate, rtol=2e-3, atol=2e-3)


def test_systematic_resampling_is_unbiased():
    weights = torch.tensor([[0.1, 0.2, 0.65, 0.05]]).double().expand(20_000, 4)
    u = Noise.of(0, 20_000).uniform(torch.zeros(20_000).double())
    drawn = systematic(weights, u, 4)
    share = torch.nn.functional.one_hot(drawn, 4).double().mean((0, 1))
    torch.testing.assert_close(share, weights[0], atol=5e-3, rtol=0)
    copies = torch.nn.functional.one_hot(drawn, 4).sum(1)
    assert (copies - 4 * weights).abs().max() < 1  # never off by a whole copy


def test_a_sample_does_not_depend_on_the_batch():
    composed = Composed(MIXTURE.denoiser(Gaussian(bd.schedule.VP())), BOTH)
    together = bd.sample(composed, index=[0, 1, 2, 3], solver=Particles(8), steps=12, seed=3)
    alone = bd.sample(composed, index=[2], solver=Particles(8), steps=12, seed=3)
    torch.testing.assert_close(together[2:3], alone)


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="at least 2"):
        Particles(1)
    with pytest.raises(UserError, match=r"guide\.Composed"):
        bd.sample(MIXTURE.denoiser(Gaussian(bd.schedule.VP())), shape=(2, 1), solver=Particles())
