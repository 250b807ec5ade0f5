"""Stationary fields against dense Gaussians on a small torus, and as truth at 128 x 128."""

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.exact import Gaussian
from backdrift.inverse import (
    MMPS,
    Blur,
    Downsample,
    FourierSamples,
    Identity,
    PiGDM,
    Stationary,
    gaussian_kernel,
    power_law,
)
from backdrift.process import Gaussian as Process

SMALL, LARGE = (2, 6, 4), (1, 128, 128)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def operators(shape, noise=0.2):
    rows = (random(shape[1], 1, seed=4) > 0.3).expand(shape[1:])
    return {
        "blur": Blur(gaussian_kernel(0.9, 1), shape, noise),
        "super-resolution": Downsample(2, shape, noise),
        "MRI": FourierSamples(rows, shape, noise),
    }


def field(shape):
    return Stationary(power_law(*shape[1:]), shape, mean=0.2)


def dense(prior):
    """The same law as a Gaussian with a full covariance."""
    size = prior.event_shape[0] * prior.event_shape[1] * prior.event_shape[2]
    units = torch.eye(size).double().view(size, *prior.event_shape)
    cov = torch.fft.ifft2(prior.spectrum * torch.fft.fft2(units)).real.reshape(size, size)
    return Gaussian(torch.full(prior.event_shape, 0.2).double(), (cov + cov.mT) / 2)


def test_a_stationary_field_is_a_gaussian():
    prior, process = field(SMALL), Process(bd.schedule.VP())
    ours, theirs = prior.denoiser(process), dense(prior).denoiser(process)
    x = random(3, *SMALL, seed=1)
    for name in ("score", "log_prob"):
        torch.testing.assert_close(getattr(ours, name)(x, 0.4), getattr(theirs, name)(x, 0.4))
    torch.testing.assert_close(ours(x, 0.4).mean, theirs(x, 0.4).mean)
    draws = prior.draw(20000).flatten(1)
    assert (draws.mT.cov() - dense(prior)._covariances()[0]).abs().max() < 0.01
    assert float(draws.mean()) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("name", operators(SMALL))
def test_posteriors_against_dense_algebra(name):
    prior, measurement, process = field(SMALL), operators(SMALL)[name], Process(bd.schedule.VP())
    y = measurement.draw(prior.draw(1), bd.Noise.of(1, 1))[0]
    ours, theirs = prior.given(measurement, y), dense(prior).given(measurement, y)
    torch.testing.assert_close(ours.mean.flatten(), theirs.means[0], rtol=1e-6, atol=1e-8)
    x = random(3, *SMALL, seed=1)
    a, b = ours.denoiser(process), theirs.denoiser(process)
    torch.testing.assert_close(a(x, 0.4).mean, b(x, 0.4).mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(a.log_prob(x, 0.4), b.log_prob(x, 0.4), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(a.score(x, 0.4), b.score(x, 0.4), rtol=1e-6, atol=1e-6)
    draws = ours.draw(20000).flatten(1)
    assert (draws.mT.cov() - theirs._covariances()[0]).abs().max() < 0.01
    assert (draws.mean(0) - theirs.means[0]).abs().max() < 0.02


@pytest.mark.parametrize("name", operators(LARGE))
def test_pictures_of_128_pixels_a_side_with_their_exact_posterior(name):
    prior, measurement, process = field(LARGE), operators(LARGE)[name], Process(bd.schedule.VP())
    truth = prior.draw(1, seed=2)
    y = measurement.draw(truth, bd.Noise.of(1, 1))[0]
    exact, denoiser = prior.given(measurement, y), prior.denoiser(process)
    # MMPS has the true covariance, so that with a converged solver it is the exact posterior's denoiser
    x = denoiser.draw(1, 0.5, seed=3)
    expected = exact.denoiser(process)(x, 0.5).mean
    moved = MMPS(iterations=60).guide(denoiser, measurement, y)(x, 0.5).mean
    assert (moved - expected).norm() < 5e-4 * (expected - denoiser(x, 0.5).mean).norm()
    # while PiGDM's round covariance is off
    off = (PiGDM(prior_std=0.5).guide(denoiser, measurement, y)(x, 0.5).mean - expected).norm()
    assert off > 0.05 * (expected - denoiser(x, 0.5).mean).norm()
    # the truth lies in the posterior: as far from its mean as draws are
    gaps = (exact.draw(3, seed=5) - exact.mean).square().flatten(1).sum(1)
    assert float((truth - exact.mean).square().sum() / gaps.mean()) == pytest.approx(1, abs=0.1)
    assert float((truth - exact.mean).square().sum()) < 0.9 * float((truth - 0.2).square().sum())


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="cannot be"):
        Stationary(torch.ones(3, 3), SMALL)
    with pytest.raises(UserError, match="mirror image"):
        Stationary(torch.arange(1.0, 25.0).view(6, 4), SMALL)
    with pytest.raises(UserError, match="closed-form posteriors"):
        field(SMALL).given(Identity(SMALL, 0.1), torch.zeros(SMALL))
    with pytest.raises(UserError, match="positive"):
        power_law(4, 4, std=0.0)
