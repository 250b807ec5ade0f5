"""Splitting and optimising samplers against closed forms, quadrature and re-derivations."""

import itertools
import math

import pytest
import torch

import backdrift as bd
from backdrift.exact import Gaussian, LinearGaussian
from backdrift.inverse import DAPS, Function, Linear, REDdiff, ReSample, SplitGibbs
from backdrift.inverse.optimise import Adam
from backdrift.inverse.split import metropolis, near
from backdrift.noise import Noise
from backdrift.process import Gaussian as Process


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gap(draws, posterior):
    """(the mean's largest error in standard errors, the covariance's largest error)."""
    mean, cov = posterior.means[0], posterior._covariances()[0]
    errors = (draws.mean(0) - mean) / (cov.diagonal() / len(draws)).sqrt()
    return float(errors.abs().max()), float((draws.mT.cov() - cov).abs().max())


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("schedule", [bd.schedule.VP(), bd.schedule.Flow()])
def test_daps_is_exact_on_round_gaussians_at_any_number_of_steps(levels, schedule):
    prior = Gaussian(random(3, seed=1), torch.tensor(0.49, dtype=torch.float64))
    measurement, y = Linear(random(2, 3, seed=2), 0.4), random(2, seed=3)
    run, n = DAPS(inner=1, prior_std=0.7), 8000
    draws = run(prior.denoiser(Process(schedule)), measurement, y, n, steps=levels, noise=Noise.of(0, n))
    off, cov = gap(draws, prior.given(measurement, y))
    assert off < 4.5 and cov < 0.03
    wrong = DAPS(inner=1, prior_std=1.4)(
        prior.denoiser(Process(schedule)), measurement, y, n, steps=levels, noise=Noise.of(0, n)
    )
    assert gap(wrong, prior.given(measurement, y))[1] > 0.05


def test_split_gibbs_has_the_posterior_of_inflated_noise():
    prior = Gaussian(random(3, seed=1), torch.tensor([0.4, 0.2, 0.1], dtype=torch.float64))
    A, y, rho, n = random(2, 3, seed=2), random(2, seed=3), 0.5, 4000
    run = SplitGibbs(first=rho, last=rho, inner=12)
    denoiser = prior.denoiser(Process(bd.schedule.VP()))
    draws = run(denoiser, Linear(A, 0.4), y, n, steps=12 * 8, noise=Noise.of(0, n))
    inflated = LinearGaussian(A, cov=0.16 * torch.eye(2) + rho**2 * A @ A.mT)
    off, cov = gap(draws, prior.given(inflated, y))
    assert off < 5 and cov < 0.03
    # which is another law than the posterior itself
    assert gap(draws, prior.given(Linear(A, 0.4), y))[1] > 0.08


def moments(log_density, low, high):
    x = torch.linspace(low, high, 4001, dtype=torch.float64)
    w = (log_density(x[:, None])).softmax(0)
    mean = (w * x).sum()
    return float(mean), float((w * (x - mean) ** 2).sum())


@pytest.mark.parametrize("std", [0.05, 1.0])
def test_draws_near_a_point_of_what_is_not_linear_against_quadrature(std):
    measurement = Function(lambda x: x + 0.3 * x**3, (1,), std)
    y, centre, variance, n = torch.tensor([[0.8]]).double(), 0.3, 0.6, 2000
    points = torch.full((n, 1), centre).double()
    draws = near(measurement, y, points, torch.full((n,), variance).double(), 120, Noise.of(0, n))
    mean, var = moments(lambda x: measurement.log_likelihood(x, y) - (x[:, 0] - centre) ** 2 / (2 * variance), -4, 4)
    assert float(draws.mean()) == pytest.approx(mean, abs=5 * math.sqrt(var / n))
    assert float(draws.var()) == pytest.approx(var, rel=0.15)


def test_draws_near_a_point_of_a_linear_measurement():
    n, A, y = 30000, random(2, 3), random(1, 2, seed=1)
    centre = random(3, seed=4)
    draws = near(Linear(A, 0.4), y, centre.expand(n, 3), torch.full((n,), 0.6).double(), 1, Noise.of(0, n))
    exact = Gaussian(centre, torch.tensor(0.6).double()).given(Linear(A, 0.4), y[0])
    off, cov = gap(draws, exact)
    assert off < 4.5 and cov < 0.02


def test_a_long_way_to_a_narrow_law_is_walked():
    x = metropolis(
        lambda x: -((x[:, 0] - 2) ** 2) / (2 * 1e-4), torch.zeros(500, 1).double(), torch.ones(1, 1).double(), 200,
        Noise.of(0, 500),
    )  # fmt: skip
    assert float(x.mean()) == pytest.approx(2, abs=0.005) and float(x.std()) == pytest.approx(0.01, rel=0.15)


def test_red_diff_slope_is_that_of_its_loss():
    measurement = Function(torch.sin, (3,), 0.1)
    mu, eps, y = random(4, 3).requires_grad_(), random(4, 3, seed=1), random(3, seed=2)
    alpha, sigma = 0.8, 0.6
    denoiser = Gaussian(random(3, seed=3), torch.tensor(0.5).double()).denoiser(Process(bd.schedule.VP()))
    t = float(bd.schedule.VP().time(torch.tensor(2 * math.log(alpha / sigma)).double()))
    x = (alpha * mu + sigma * eps).detach()
    D = denoiser(x, t).mean
    predicted = (x - alpha * D) / sigma
    fit = (torch.sin(mu) - y).square().sum() / 2
    loss = fit + 0.25 * sigma / alpha * ((predicted - eps) * mu).sum()
    expected = torch.autograd.grad(loss, mu)[0]
    slope = REDdiff(strength=0.25).slope(mu.detach(), D, measurement, y[None])
    torch.testing.assert_close(slope, expected)


def test_adam_is_adam():
    x, target = random(5), random(5, seed=1)
    ours, theirs = x.clone(), x.clone().requires_grad_()
    adam, torchs = Adam(ours, 0.1), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(7):
        ours = adam.step(ours, ours - target)
        torchs.zero_grad()
        ((theirs - target).square().sum() / 2).backward()
        torchs.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_red_diff_fits_y_and_lets_the_prior_fill_in_the_rest():
    prior = Gaussian(torch.zeros(2).double(), torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double())
    denoiser = prior.denoiser(Process(bd.schedule.VP()))
    measurement, y = Linear(torch.tensor([[1.0, 0.0]]).double(), 0.1), torch.ones(1).double()
    draws = REDdiff()(denoiser, measurement, y, 100, steps=150, noise=Noise.of(0, 100))
    assert float(draws[:, 0].mean()) == pytest.approx(1, abs=0.05)
    assert 0.5 < float(draws[:, 1].mean()) < 1.1  # 0.9 given the first; it starts at 0
    assert float(draws[:, 0].std()) < 0.1  # a point, not a posterior


def test_resample_draws_from_the_product_of_path_and_fit():
    # a prior that is nearly a point has D = its mean, so that every state is Gaussian, with moments by recursion
    D, A, n, gamma = torch.tensor([0.3, -0.2]).double(), torch.tensor([[1.0, 0.5]]).double(), 20000, 0.2
    process, seen = Process(bd.schedule.VP()), []
    denoiser = Gaussian(D, torch.tensor(1e-10).double()).denoiser(process)
    y, noise = torch.ones(1).double(), Noise.of(0, n)
    draws = ReSample(gamma=gamma)(denoiser, Linear(A, 0.1), y, n, steps=4, noise=noise, on_step=seen.append)
    fit = D + A[0] * (1.0 - A[0] @ D) / A[0].square().sum()
    mean, variance = torch.zeros(2).double(), float(process.schedule.alpha_sigma(1.0)[1]) ** 2
    for before, after in itertools.pairwise(seen):
        (alpha, sigma), (alpha_s, sigma_s) = (
            map(float, process.schedule.alpha_sigma(step.t)) for step in (before, after)
        )
        keep = alpha / alpha_s * sigma_s**2 / sigma**2
        added = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
        path = keep * mean + alpha_s * added / sigma**2 * D
        path_variance = keep**2 * variance + sigma_s**2 * added / sigma**2
        v = gamma * sigma_s**2 * added / (alpha**2 * (alpha**2 + sigma**2))
        mean = (v * alpha_s * fit + sigma_s**2 * path) / (v + sigma_s**2)
        variance = path_variance * (sigma_s**2 / (v + sigma_s**2)) ** 2 + v * sigma_s**2 / (v + sigma_s**2)
        assert ((after.state.mean(0) - mean).abs() < 5 * math.sqrt(variance / n)).all()
        assert (after.state.var(0) / variance - 1).abs().max() < 0.05
    torch.testing.assert_close(draws, fit.expand(n, 2), atol=1e-6, rtol=0)
    # every other step: the first is left alone
    seen.clear()
    ReSample(every=2)(denoiser, Linear(A, 0.1), y, n, steps=2, noise=noise, on_step=seen.append)
    assert (seen[1].state.mean(0) - float(process.schedule.alpha_sigma(seen[1].t)[0]) * D).abs().max() < 0.03


def test_resample_fits_what_is_not_linear_up_to_the_noise():
    measurement = Function(lambda x: x + 0.3 * x**3, (2,), 0.05)
    x = ReSample().fit(torch.zeros(3, 2).double(), measurement, torch.tensor([[0.8, -0.4]]).double())
    residual = (measurement.forward(x) - torch.tensor([0.8, -0.4])).square().mean(1).sqrt()
    assert ((residual < 0.0501) & (residual > 0.02)).all()
