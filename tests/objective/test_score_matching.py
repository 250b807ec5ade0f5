"""Score matching against the Fisher divergence in closed form; averages are quadratures, nothing here is random."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from backdrift import schedule as sch
from backdrift import target as tgt
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.exact import Gaussian, Mixture
from backdrift.nets import MLP
from backdrift.noise import Noise
from backdrift.objective import denoising as denoising_objective
from backdrift.objective.score_matching import denoising, exact, score_of, sliced
from backdrift.process import Gaussian as Corruption
from backdrift.process import Masking

MEAN = torch.tensor([0.4, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
PRECISION = COV.inverse()
SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=torch.float64)
MEANS = torch.tensor([[-0.7, 0.2], [0.6, 0.1]], dtype=torch.float64)
COVS = torch.stack([COV, 0.4 * torch.eye(2, dtype=torch.float64)])
MIXTURE = Mixture(torch.tensor([1.0, 2.0]), MEANS, COVS)


@dataclass
class Given:
    """A noise whose k-th slice has the k-th of these signs, and whose normal draw is `eps`."""

    signs: torch.Tensor = None
    eps: torch.Tensor = None

    def at(self, name, k):
        return Given(self.signs[k : k + 1])

    def uniform(self, like):
        return (self.signs / 4 + 0.5).expand_as(like)

    def normal(self, like):
        return self.eps


def quadrature(mean, cov, n=40):
    """(points (n^2, 2), weights) of N(mean, cov)."""
    x, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(n))
    points = torch.cartesian_prod(x, x) @ torch.linalg.cholesky(cov).T + mean
    return points, torch.outer(w, w).flatten() / w.sum() ** 2


def of_mixture():
    parts = [quadrature(mean, cov) for mean, cov in zip(MEANS, COVS, strict=True)]
    return torch.cat([x for x, _ in parts]), torch.cat([c * w for c, (_, w) in zip((1 / 3, 2 / 3), parts, strict=True)])


def bent(x):
    """A score that is no gradient of anything."""
    return torch.stack([-(x[:, 0] ** 3) + x[:, 1], -x[:, 1] + (x[:, 0] * x[:, 1]).sin()], 1)


@torch.no_grad()
def test_it_is_the_fisher_divergence_of_a_gaussian_up_to_its_constant():
    A, b = torch.tensor([[1.0, -0.4], [0.7, 2.5]], dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    x, w = quadrature(MEAN, COV)
    gap = PRECISION - A
    fisher = (torch.trace(gap @ COV @ gap.T) + (A @ (MEAN - b)).square().sum()) / 2
    constant = torch.trace(PRECISION) / 2
    assert float(w @ exact(lambda x: -(x - b) @ A.T, x) + constant) == pytest.approx(float(fisher), rel=1e-10)
    # at the truth nothing but the constant is left
    assert float(w @ exact(lambda x: -(x - MEAN) @ PRECISION, x)) == pytest.approx(-float(constant), rel=1e-10)


@torch.no_grad()
def test_it_is_the_fisher_divergence_of_a_mixture_up_to_its_constant():
    x, w = of_mixture()
    truth = score_of(MIXTURE.denoiser(Corruption(sch.VE(1e-4, 1.0))), 0.0)(x)
    fisher = w @ (bent(x) - truth).square().sum(1) / 2
    assert float(w @ exact(bent, x) + w @ truth.square().sum(1) / 2) == pytest.approx(float(fisher), rel=1e-6)


def test_slices_average_to_the_exact_trace():
    x, _ = of_mixture()
    x = x[::97]
    every = Given(SIGNS)
    for reduced in (True, False):
        torch.testing.assert_close(sliced(bent, x, every, slices=4, reduced=reduced), exact(bent, x))
    single = torch.stack([sliced(bent, x, Given(SIGNS[k:])) for k in range(4)])
    assert single.std(0).max() > 0.1  # a slice alone is not


@torch.no_grad()
def test_the_reduced_form_has_less_variance():
    noise, x = Noise.of(0, 4000), torch.tensor([[0.9, -1.1]], dtype=torch.float64).expand(4000, 2)
    score = lambda x: -(x - MEAN) @ PRECISION  # noqa: E731
    plain, reduced = (sliced(score, x, noise, reduced=r) for r in (False, True))
    # by hand: v^T J v has the cross terms of J, and (v s)^2 / 2 has s_1 s_2 on top, both times the sign v_1 v_2
    s = score(x[:1])[0]
    assert float(reduced.std()) == pytest.approx(float(2 * PRECISION[0, 1].abs()), rel=0.02)
    assert float(plain.std()) == pytest.approx(float((s.prod() - 2 * PRECISION[0, 1]).abs()), rel=0.02)
    assert plain.std() > reduced.std()


@pytest.mark.parametrize("kind", ["exact", "sliced", "sliced plain", "denoising"])
def test_a_linear_score_is_fitted_to_the_precision(kind):
    """The minimum on samples is the inverse of their own covariance (plus sigma^2 where they are blurred)."""
    x = MEAN + Noise.of(1, 300).normal(torch.zeros(300, 2, dtype=torch.float64)) @ torch.linalg.cholesky(COV).T
    sigma, eye = 0.5, torch.eye(2, dtype=torch.float64)
    # four noises that have mean zero and covariance one, for every sample
    copies, eps = x.repeat_interleave(4, 0), SIGNS.repeat(300, 1)
    A, b = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    A.requires_grad_(), b.requires_grad_()

    def score(x):
        return b - x @ A.T

    losses = {
        "exact": lambda: exact(score, x),
        "sliced": lambda: sliced(score, x, Given(SIGNS), slices=4),
        "sliced plain": lambda: sliced(score, x, Given(SIGNS), slices=4, reduced=False),
        "denoising": lambda: denoising(score, copies, sigma, Given(eps=eps)),
    }
    optimiser = torch.optim.LBFGS(
        [A, b], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = losses[kind]().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    cov = (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)
    expected = torch.linalg.inv(cov + sigma**2 * eye * (kind == "denoising"))
    torch.testing.assert_close(A.detach(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(b.detach(), expected @ x.mean(0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", [sch.VP(), sch.VE(), sch.Flow()], ids=lambda s: s.kind)
def test_a_denoiser_is_a_score(schedule):
    t, x0 = torch.tensor([0.3, 0.5, 0.9]), torch.tensor([[0.1, -0.2], [0.6, 0.4], [-1.0, 0.3]], dtype=torch.float64)
    denoiser = MIXTURE.denoiser(Corruption(schedule))
    alpha, sigma = schedule.alpha_sigma(t)
    blurred = MIXTURE.at(x0, alpha, sigma)
    torch.testing.assert_close(score_of(denoiser, t)(x0), blurred.score)
    noise = Noise.of(3, 3)
    found = denoising(score_of(denoiser, t), alpha[:, None] * x0, sigma, noise)
    weighted = denoising_objective(denoiser, x0, t, noise, weight=lambda t: alpha**2 / (2 * sigma**4))
    torch.testing.assert_close(found, 2 * weighted)


@torch.no_grad()
def test_the_best_score_of_a_network_is_the_blurred_one():
    """At a level, both derivative losses fall short of the Fisher divergence by the same constant."""
    t, process = 0.4, Corruption(sch.VP())
    alpha, sigma = process.schedule.alpha_sigma(t)
    cov = alpha**2 * COV + sigma**2 * torch.eye(2, dtype=torch.float64)
    x, w = quadrature(alpha * MEAN, cov)
    score = score_of(Gaussian(MEAN, COV).denoiser(process), t)
    assert float(w @ exact(score, x)) == pytest.approx(-float(torch.trace(cov.inverse())) / 2, rel=1e-8)


def test_networks_learn_from_every_form():
    torch.manual_seed(0)
    net = MLP(3, width=16, blocks=1)
    nn.init.normal_(net.exit.weight)
    denoiser = Network(net, Corruption(sch.VE()), tgt.SCORE(), (3,))
    x, score = torch.linspace(-1, 1, 15).view(5, 3), score_of(denoiser, 0.5)
    for loss in (exact(score, x), sliced(score, x, Noise.of(0, 5)), denoising(score, x, 0.5, Noise.of(0, 5))):
        net.zero_grad()
        loss.sum().backward()
        assert all(bool(p.grad.abs().sum() > 0) for p in net.entry.parameters())
    with torch.no_grad():
        value = exact(score, x)
    torch.testing.assert_close(value, exact(score, x).detach())
    assert not value.requires_grad


def test_mistakes_are_one_sentence():
    x = torch.zeros(2, 2)
    with pytest.raises(UserError, match="at least 1 slice"):
        sliced(bent, x, Noise.of(0, 2), slices=0)
    with pytest.raises(UserError, match="cannot be differentiated"):
        exact(torch.no_grad()(bent), x)
    denoiser = MIXTURE.denoiser(Corruption(sch.VP()))
    with pytest.raises(UserError, match="sigma = 0"):
        score_of(denoiser, torch.tensor([0.0, 0.5]))
    denoiser.process = Masking(3)
    with pytest.raises(UserError, match="Gaussian process"):
        score_of(denoiser, 0.5)
