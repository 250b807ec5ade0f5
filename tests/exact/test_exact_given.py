"""Conditioning on measurements against the joint Gaussian's formula, quadrature and enumeration."""

import numpy as np
import pytest
import torch
from scipy import stats

from backdrift import schedule
from backdrift.errors import UserError
from backdrift.exact import Atoms, Gaussian, LinearGaussian, Mixture
from backdrift.process import Gaussian as Corruption

RNG = torch.Generator().manual_seed(0)
A = torch.randn(2, 3, generator=RNG, dtype=torch.float64)
Y = torch.tensor([0.4, -1.1], dtype=torch.float64)
NOISE = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
ROOT = torch.randn(3, 3, generator=RNG, dtype=torch.float64)
COV = ROOT @ ROOT.T + 0.1 * torch.eye(3, dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def information_form(mean, cov, A, noise, y):
    """Posterior mean and covariance from precisions, the other road to the same answer."""
    precision = np.linalg.inv(cov) + A.T @ np.linalg.inv(noise) @ A
    posterior = np.linalg.inv(precision)
    return posterior @ (np.linalg.inv(cov) @ mean + A.T @ np.linalg.inv(noise) @ y), posterior


def test_likelihood_is_scipys():
    x = torch.randn(7, 3, generator=RNG, dtype=torch.float64)
    got = LinearGaussian(A, cov=NOISE).log_likelihood(x, Y)
    expected = [stats.multivariate_normal(A.numpy() @ row.numpy(), NOISE.numpy()).logpdf(Y.numpy()) for row in x]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    std = torch.tensor([0.5, 2.0], dtype=torch.float64)
    got = LinearGaussian(A, noise_std=std).log_likelihood(x, Y)
    torch.testing.assert_close(got, LinearGaussian(A, cov=torch.diag(std**2)).log_likelihood(x, Y))


def test_gaussian_is_the_information_form():
    posterior = Gaussian(MEAN, COV).given(LinearGaussian(A, cov=NOISE), Y)
    assert isinstance(posterior, Gaussian)
    mean, cov = information_form(MEAN.numpy(), COV.numpy(), A.numpy(), NOISE.numpy(), Y.numpy())
    np.testing.assert_allclose(posterior.means[0], mean, rtol=1e-9)
    np.testing.assert_allclose(posterior._covariances()[0], cov, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["number", "diagonal", "full", "shared"])
def test_mixture_component_by_component(kind):
    means = torch.randn(2, 3, generator=RNG, dtype=torch.float64)
    covs = {
        "number": torch.tensor(0.4, dtype=torch.float64),
        "diagonal": torch.rand(2, 3, generator=RNG, dtype=torch.float64) + 0.1,
        "full": torch.stack([COV, 0.3 * COV.flip(0, 1)]),
        "shared": COV[None],
    }[kind]
    prior = Mixture(torch.tensor([0.3, 0.7]), means, covs, labels=torch.tensor([0, 1]))
    dense = prior._covariances().expand(2, 3, 3).numpy()
    posterior = prior.given(LinearGaussian(A, cov=NOISE), Y)
    evidence = []
    for k, (m, c) in enumerate(zip(means.numpy(), dense, strict=True)):
        mean, cov = information_form(m, c, A.numpy(), NOISE.numpy(), Y.numpy())
        np.testing.assert_allclose(posterior.means[k], mean, rtol=1e-8)
        np.testing.assert_allclose(posterior._covariances().expand(2, 3, 3)[k], cov, rtol=1e-7, atol=1e-10)
        spread = A.numpy() @ c @ A.numpy().T + NOISE.numpy()
        evidence.append(prior.weights[k] * stats.multivariate_normal(A.numpy() @ m, spread).pdf(Y.numpy()))
    np.testing.assert_allclose(posterior.weights, np.array(evidence) / sum(evidence), rtol=1e-8)
    assert torch.equal(posterior.labels, prior.labels)


def test_posterior_density_is_bayes_rule_pointwise():
    prior = Mixture(torch.tensor([0.3, 0.7]), torch.stack([MEAN, -MEAN]), torch.stack([COV, 0.5 * COV]))
    measurement = LinearGaussian(A, cov=NOISE)
    posterior = prior.given(measurement, Y)
    x = torch.randn(20, 3, generator=RNG, dtype=torch.float64)
    evidence = prior.log_prob(x) + measurement.log_likelihood(x, Y) - posterior.log_prob(x)
    torch.testing.assert_close(evidence, evidence[:1].expand(20), rtol=1e-9, atol=1e-9)


def test_posterior_by_quadrature_in_one_dimension():
    prior = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.5], [1.5]], dtype=torch.float64), 0.04)
    measurement = LinearGaussian(torch.ones(1, 1), noise_std=0.5)
    posterior = prior.given(measurement, torch.tensor([0.15]))
    grid = torch.linspace(-8, 8, 400_001, dtype=torch.float64)[:, None]
    density = (prior.log_prob(grid) + measurement.log_likelihood(grid, torch.tensor([0.15]))).exp()
    mean = float((density * grid[:, 0]).sum() / density.sum())
    assert float(posterior.weights @ posterior.means[:, 0]) == pytest.approx(mean, abs=1e-8)
    # the weight of the upper mode, known from the research on posterior samplers' failures
    assert float(posterior.weights[1]) == pytest.approx(0.825, abs=1e-3)
    density = density / density.sum()
    process = Corruption(schedule.Trig())
    alpha, sigma = (float(v) for v in schedule.Trig().alpha_sigma(0.3))
    joint = density * (-((0.2 - alpha * grid[:, 0]) ** 2) / (2 * sigma**2)).exp()
    got = posterior.denoiser(process)(torch.full((1, 1), 0.2, dtype=torch.float64), 0.3).mean
    assert float(got) == pytest.approx(float((joint * grid[:, 0]).sum() / joint.sum()), abs=1e-8)


def test_atoms_are_reweighted_by_any_likelihood():
    points = torch.randn(30, 3, generator=RNG, dtype=torch.float64)
    weights = torch.rand(30, generator=RNG, dtype=torch.float64)

    class Counts:
        def log_likelihood(self, x, y):
            return torch.distributions.Poisson(x.square().sum(1)).log_prob(y)

    posterior = Atoms(points, weights).given(Counts(), torch.tensor(2.0))
    rate = points.square().sum(1)
    expected = weights * rate**2 * (-rate).exp()
    torch.testing.assert_close(posterior.weights, expected / expected.sum(), rtol=1e-9, atol=1e-12)
    # and the denoiser, not only the weights, is the posterior's
    process = Corruption(schedule.VP())
    rebuilt = Atoms(points, expected)
    x = rebuilt.denoiser(process).draw(5, 0.5)
    torch.testing.assert_close(posterior.denoiser(process)(x, 0.5).mean, rebuilt.denoiser(process)(x, 0.5).mean)
    # exact guidance: grad log p(y | x_t) = (alpha / sigma^2) (posterior mean - prior mean)
    alpha, sigma = schedule.VP().alpha_sigma(0.5)
    prior = Atoms(points, weights).denoiser(process)
    x.requires_grad_()
    likelihood = (prior.posterior_weights(x, 0.5) @ (rate**2 * (-rate).exp())).log()
    (guidance,) = torch.autograd.grad(likelihood.sum(), x)
    difference = posterior.denoiser(process)(x, 0.5).mean - prior(x, 0.5).mean
    torch.testing.assert_close(guidance, alpha / sigma**2 * difference, rtol=1e-8, atol=1e-9)


def test_atoms_with_a_bandwidth_become_a_mixture():
    points = torch.randn(9, 1, 3, generator=RNG)
    prior = Atoms(points, bandwidth=0.4)
    measurement = LinearGaussian(A, cov=NOISE)
    posterior = prior.given(measurement, Y)
    x = torch.randn(12, 1, 3, generator=RNG)
    evidence = prior.log_prob(x).double() + measurement.log_likelihood(x, Y) - posterior.log_prob(x).double()
    torch.testing.assert_close(evidence, evidence[:1].expand(12), rtol=1e-5, atol=1e-5)
    assert posterior.draw(2).shape == (2, 1, 3)
    assert posterior.draw(2).dtype == torch.float32


def test_refusals():
    measurement = LinearGaussian(A, cov=NOISE)
    for build in (
        lambda: LinearGaussian(A),
        lambda: LinearGaussian(A, noise_std=0.0),
        lambda: LinearGaussian(A, noise_std=torch.ones(3)),
        lambda: LinearGaussian(A[0], noise_std=1.0),
        lambda: LinearGaussian(A, cov=-NOISE),
        lambda: LinearGaussian(A, cov=torch.ones(2, 3)),
        lambda: measurement.log_likelihood(torch.zeros(2, 4), Y),
        lambda: Gaussian(MEAN, COV).given(measurement, Y[:1]),
        lambda: Gaussian(MEAN[:2], 1.0).given(measurement, Y),
        lambda: Gaussian(MEAN, COV).given(object(), Y),
        lambda: Atoms(torch.zeros(2, 3), bandwidth=1.0).given(object(), Y),
    ):
        with pytest.raises(UserError):
            build()

    class Impossible:
        def log_likelihood(self, x, y):
            return torch.full((len(x),), -torch.inf)

    with pytest.raises(UserError):
        Atoms(torch.zeros(2, 3)).given(Impossible(), Y)
