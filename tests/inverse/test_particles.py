"""Particle samplers against the posterior of their own chain of steps, by quadrature on a line."""

import itertools
import math

import pytest
import torch

import backdrift as bd
from backdrift.exact import Mixture
from backdrift.inverse import DPS, Filtering, Linear, PiGDM, Twisted
from backdrift.inverse.particles import _owned
from backdrift.inverse.sampler import falling
from backdrift.noise import Noise
from backdrift.process import Gaussian as Process

PROCESS = Process(bd.schedule.VP())
PRIOR = Mixture(torch.ones(2), torch.tensor([[-1.5], [1.5]]).double(), 0.04)
MEASUREMENT, Y = Linear(torch.ones(1, 1).double(), 0.5), torch.tensor([0.15]).double()


def chain(steps):
    """(p(y), the mass on the right given y) of the chain of `steps` ancestral steps, its law pushed along a grid."""
    x = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    width, denoiser = float(x[1] - x[0]), PRIOR.denoiser(PROCESS)
    times = falling(bd.grids.Angle(), PROCESS, steps).tolist()
    law = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    for t, s in itertools.pairwise(times):
        # rows: the bridge's mean from each point, by two calls of it without noise
        D = denoiser(x[:, None], t).mean[:, 0]
        (alpha_s, sigma_s), (_, sigma) = PROCESS.schedule.alpha_sigma(s), PROCESS.schedule.alpha_sigma(t)
        scale, added = PROCESS.transition(s, t)
        mean = scale * (sigma_s / sigma) ** 2 * x + alpha_s * added / sigma**2 * D
        std = float(sigma_s * (added / sigma**2).sqrt())
        if std == 0:
            likelihood = torch.exp(-((Y - mean) ** 2) / (2 * 0.25)) / math.sqrt(2 * math.pi * 0.25)
            evidence = float((law * likelihood).sum()) * width
            return evidence, float((law * likelihood)[mean > 0].sum()) * width / evidence
        kernel = torch.exp(-((x[None] - mean[:, None]) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
        law = law @ kernel * width


@pytest.mark.parametrize("guide", [DPS(strength=0.3), PiGDM(prior_std=1.2)], ids=["DPS", "PiGDM"])
@pytest.mark.parametrize("count", [3])
def test_the_evidence_is_unbiased_for_any_number_of_particles(guide, count):
    evidence, _ = chain(12)
    n = 2000
    cloud = Twisted(count=count, guide=guide).cloud(
        PRIOR.denoiser(PROCESS), MEASUREMENT, Y, n, steps=12, noise=Noise.of(0, n)
    )
    found = cloud.log_evidence.exp()
    error = float(found.std()) / math.sqrt(n)
    assert error < 0.15 * evidence
    assert float(found.mean()) == pytest.approx(evidence, abs=4.5 * error)
    assert bool((cloud.effective <= count + 1e-9).all() and (cloud.effective >= 1 - 1e-9).all())


def mass(count, n, steps=12, seed=0):
    """(the weighted mass on the right, its standard error)."""
    cloud = Twisted(count=count, guide=PiGDM(prior_std=None)).cloud(
        PRIOR.denoiser(PROCESS), MEASUREMENT, Y, n, steps=steps, noise=Noise.of(seed, n)
    )
    right = (cloud.log_weights.exp() * (cloud.x[..., 0] > 0)).sum(1)
    return float(right.mean()), float(right.std()) / math.sqrt(n)


@pytest.mark.slow
def test_the_bias_falls_at_least_as_one_over_the_particles():
    _, exact = chain(12)
    counts = [1, 2, 4, 8]
    found = [mass(count, 60_000 // count, seed=3) for count in counts]
    assert all(exact - value > 5 * error for value, error in found)
    biases = torch.tensor([exact - value for value, _ in found]).log2()
    # one over the count is -1 a doubling; from one particle to two it has not begun
    assert (biases.diff()[1:] < -0.9).all() and (biases.diff() < -0.4).all()


def test_particles_bring_the_guide_to_the_posterior():
    _, exact = chain(12)
    one, error = mass(1, 2000)
    assert one < exact - 10 * error  # the guide alone
    many, error = mass(24, 300)
    assert many == pytest.approx(exact, abs=0.02 + 3 * error)


def test_filtering_weighs_by_what_each_step_predicts_of_the_next_y():
    # two particles are never resampled, so their weights are products of what every step gives them
    a, g, y, n, schedule = 0.7, 0.4, 0.9, 3, PROCESS.schedule
    denoiser, noise = PRIOR.denoiser(PROCESS), Noise.of(0, n)
    measurement = Linear(torch.tensor([[a]]).double(), g)
    cloud = Filtering(count=2).cloud(denoiser, measurement, torch.tensor([y]).double(), n, steps=2, noise=noise)
    t, s, _ = times = falling(bd.grids.Angle(), PROCESS, 2).tolist()
    (alpha, sigma), (alpha_s, sigma_s), _ = (tuple(map(float, schedule.alpha_sigma(v))) for v in times)
    like, own = torch.zeros(n, 1).double(), _owned(noise, 2)
    y_s = alpha_s * y + sigma_s * a * noise.at("y", 0).normal(like)
    added = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    y_t = alpha / alpha_s * y_s + added**0.5 * a * noise.at("y", 1).normal(like)
    y_s, y_t = y_s.repeat_interleave(2, 0), y_t.repeat_interleave(2, 0)

    def toward(centre, std, y, alpha, noise):
        u, v = centre + std * noise.at("x").normal(centre), y + alpha * g * noise.at("y").normal(y)
        return u + std**2 * a * (v - a * u) / ((std * a) ** 2 + (alpha * g) ** 2)

    x = toward(torch.zeros(2 * n, 1).double(), sigma, y_t, alpha, own)
    centre = alpha / alpha_s * sigma_s**2 / sigma**2 * x + alpha_s * added / sigma**2 * denoiser(x, t).mean
    std = sigma_s * added**0.5 / sigma
    logs = -((y_s - a * centre) ** 2) / (2 * ((std * a) ** 2 + (alpha_s * g) ** 2))
    D = denoiser(toward(centre, std, y_s, alpha_s, own.at("step", 0)), s).mean
    logs = logs - (y - a * D) ** 2 / (2 * ((sigma_s / alpha_s * a) ** 2 + g**2))
    torch.testing.assert_close(cloud.log_weights, logs.view(n, 2).log_softmax(1), rtol=1e-5, atol=1e-6)


def test_filtering_is_exact_for_a_y_without_noise():
    means = torch.tensor([[-1.0, -1.0], [-0.6, 1.0], [1.2, 0.0]]).double()
    covs = torch.tensor([[[0.3, 0.25], [0.25, 0.4]]]).double()
    prior = Mixture(torch.tensor([0.5, 0.3, 0.2]), means, covs)
    measurement, y, n = Linear(torch.tensor([[1.0, 0.0]]).double(), 1e-3), torch.tensor([-0.5]).double(), 300
    exact = prior.given(measurement, y)
    mean = float(exact.weights @ exact.means[:, 1])
    var = float(exact.weights @ (exact._covariances()[:, 1, 1] + (exact.means[:, 1] - mean) ** 2))
    draws = Filtering(count=12)(prior.denoiser(PROCESS), measurement, y, n, steps=30, noise=Noise.of(0, n))
    assert (draws[:, 0] + 0.5).abs().max() < 0.02
    assert float(draws[:, 1].mean()) == pytest.approx(mean, abs=4 * math.sqrt(var / n) + 0.03)
    assert float(draws[:, 1].var()) == pytest.approx(var, rel=0.2)
    # and with noise it trusts y too much
    noisy = Linear(torch.tensor([[1.0, 0.0]]).double(), 0.8)
    draws = Filtering(count=12)(prior.denoiser(PROCESS), noisy, y, n, steps=30, noise=Noise.of(0, n))
    wide = prior.given(noisy, y)
    centre = float(wide.weights @ wide.means[:, 0])
    spread = float(wide.weights @ (wide._covariances()[:, 0, 0] + (wide.means[:, 0] - centre) ** 2))
    assert float(draws[:, 0].var()) < 0.6 * spread
