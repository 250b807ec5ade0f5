"""Mixtures and Gaussians against quadrature, scipy's densities and finite sums, at all noise levels."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from backdrift import schedule
from backdrift.errors import UserError
from backdrift.exact import Gaussian, Mixture
from backdrift.process import Centred, Masking
from backdrift.process import Gaussian as Corruption

SCHEDULES = [
    schedule.VP(), schedule.Cosine(), schedule.VE(), schedule.EDM(), schedule.Flow(), schedule.Trig(),
    schedule.Shifted(schedule.Flow(), 3.0), schedule.Tabulated.linear(),
]  # fmt: skip
NAMES = [type(s).__name__ for s in SCHEDULES]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def full(kind: str = "full", dtype=torch.float64) -> Mixture:
    """Three components in three dimensions."""
    rng = torch.Generator().manual_seed(3)
    means = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    root = torch.randn(3, 3, 3, generator=rng, dtype=torch.float64)
    covs = {
        "number": torch.tensor(0.3, dtype=torch.float64),
        "each": double(0.1, 0.4, 0.9),
        "diagonal": root[0].square() + 0.05,
        "full": root @ root.mT / 3 + 0.05 * torch.eye(3, dtype=torch.float64),
        "shared": (root @ root.mT / 3 + 0.05 * torch.eye(3, dtype=torch.float64))[:1],
    }[kind]
    return Mixture(double(1, 2, 5), means.to(dtype), covs.to(dtype), labels=torch.tensor([0, 1, 0]))


def dense(mixture: Mixture) -> list[np.ndarray]:
    covs = mixture._covariances().expand(3, 3, 3)
    return [c.numpy() for c in covs]


@pytest.mark.parametrize("kind", ["number", "each", "diagonal", "full", "shared"])
def test_density_is_scipys(kind):
    mixture, sch = full(kind), schedule.VP()
    x = mixture.draw(6, seed=1)
    for t in (0.0, 0.2, 1.0):
        alpha, sigma = (float(v) for v in sch.alpha_sigma(t))
        expected = sum(
            w * stats.multivariate_normal(alpha * m, alpha**2 * c + sigma**2 * np.eye(3)).pdf(x.numpy())
            for w, m, c in zip((1 / 8, 2 / 8, 5 / 8), mixture.means.numpy(), dense(mixture), strict=True)
        )
        got = mixture.denoiser(Corruption(sch)).log_prob(x, t)
        np.testing.assert_allclose(got, np.log(expected), rtol=1e-10)
    np.testing.assert_allclose(mixture.log_prob(x), mixture.denoiser(Corruption(sch)).log_prob(x, 0.0), rtol=1e-12)


def test_covariances_of_a_full_mixture_are_the_given_ones():
    rng = torch.Generator().manual_seed(3)
    torch.randn(3, 3, generator=rng, dtype=torch.float64)
    root = torch.randn(3, 3, 3, generator=rng, dtype=torch.float64)
    expected = root @ root.mT / 3 + 0.05 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(full()._covariances(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sch", SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("kind", ["each", "diagonal", "full", "shared"])
def test_score_is_the_gradient_and_the_mean_is_tweedies(sch, kind):
    denoiser = full(kind).denoiser(Corruption(sch))
    for t in (0.0, 0.03, 0.5, 1.0):
        x = denoiser.draw(5, t, seed=2).requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)
        score, mean = denoiser.score(x, t), denoiser(x, t).mean
        torch.testing.assert_close(score, gradient, rtol=1e-8, atol=1e-9)
        alpha, sigma = sch.alpha_sigma(t)
        torch.testing.assert_close(alpha * mean, x + sigma**2 * score, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.8])
def test_denoiser_is_the_quadrature_in_one_dimension(t):
    mixture = Mixture(double(1, 3), double(-1.0, 1.2)[:, None], double(0.04, 0.3))
    sch = schedule.Cosine()
    denoiser = mixture.denoiser(Corruption(sch))
    alpha, sigma = (float(v) for v in sch.alpha_sigma(t))

    def joint(x0, x):
        prior = 0.25 * stats.norm(-1.0, 0.2).pdf(x0) + 0.75 * stats.norm(1.2, math.sqrt(0.3)).pdf(x0)
        return prior * stats.norm(x, sigma).pdf(alpha * x0)

    for x in (-1.5, 0.1, 2.0):
        grid = np.linspace(-6, 6, 40_001)
        values = joint(grid, x)
        evidence = integrate.simpson(values, x=grid)
        mean = integrate.simpson(values * grid, x=grid) / evidence
        state = double(x)[None]
        assert float(denoiser(state, t).mean) == pytest.approx(mean, abs=1e-9)
        assert float(denoiser.log_prob(state, t)) == pytest.approx(math.log(evidence), abs=1e-9)


@pytest.mark.parametrize("sch", SCHEDULES, ids=NAMES)
def test_the_two_ends(sch):
    mixture = full()
    denoiser = mixture.denoiser(Corruption(sch))
    (a0, s0), (a1, _) = sch.alpha_sigma(0.0), sch.alpha_sigma(1.0)
    x = mixture.draw(4)
    if s0 == 0:
        torch.testing.assert_close(denoiser(x, 0.0).mean, x / a0, rtol=1e-9, atol=1e-9)
    if a1 == 0:
        expected = (double(1, 2, 5)[:, None] / 8 * mixture.means).sum(0).expand(4, 3)
        torch.testing.assert_close(denoiser(x, 1.0).mean, expected, rtol=1e-12, atol=1e-12)


def test_weights_time_per_sample_and_dtype():
    for dtype in (torch.float32, torch.float64):
        denoiser = full(dtype=dtype).denoiser(Corruption(schedule.VP()))
        t = double(0.1, 0.5, 0.9)
        x = denoiser.draw(3, t)
        mean = denoiser(x, t).mean
        assert x.dtype == mean.dtype == denoiser.score(x, t).dtype == denoiser.log_prob(x, t).dtype == dtype
        one_by_one = torch.cat([denoiser(x[i : i + 1], float(t[i])).mean for i in range(3)])
        torch.testing.assert_close(mean, one_by_one, rtol=1e-6, atol=1e-6)
        assert denoiser.posterior_weights(x, t).sum(1) == pytest.approx([1.0] * 3)


def test_many_components_are_summed_in_pieces(monkeypatch):
    whole = full().denoiser(Corruption(schedule.VP()))
    x = whole.draw(5, 0.3)
    expected = whole(x, 0.3).mean, whole.score(x, 0.3), whole.log_prob(x, 0.3)
    monkeypatch.setattr("backdrift.exact.mixture.BLOCK", 1)
    for got, want in zip((whole(x, 0.3).mean, whole.score(x, 0.3), whole.log_prob(x, 0.3)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_labels_choose_the_part():
    mixture = full()
    process = Corruption(schedule.VP())
    part = Mixture(double(1, 5), mixture.means[[0, 2]], mixture._covariances()[[0, 2]]).denoiser(process)
    denoiser = mixture.denoiser(process)
    x = denoiser.draw(3, 0.4)
    cond = {"label": torch.tensor([0, 2, 0])}
    mean, logs, score = denoiser(x, 0.4, cond).mean, denoiser.log_prob(x, 0.4, cond), denoiser.score(x, 0.4, cond)
    for got, name in ((mean, "mean"), (logs, "log_prob"), (score, "score")):
        alone, everything = (d(x, 0.4).mean if name == "mean" else getattr(d, name)(x, 0.4) for d in (part, denoiser))
        torch.testing.assert_close(got, torch.stack([alone[0], everything[1], alone[2]]))
    torch.testing.assert_close(denoiser(x, 0.4, {"label": torch.tensor(2)}).mean, denoiser(x, 0.4).mean)
    drawn = mixture.draw(2000, cond={"label": torch.tensor(1)})
    torch.testing.assert_close(drawn.mean(0), mixture.means[1], rtol=0, atol=0.12)
    for label in (torch.tensor([3, 0, 0]), torch.tensor([-1, 0, 0]), torch.tensor([0, 0])):
        with pytest.raises(UserError):
            denoiser(x, 0.4, {"label": label})


@pytest.mark.parametrize("kind", ["each", "diagonal", "full", "shared"])
def test_draws_have_the_right_moments(kind):
    mixture, n = full(kind), 40_000
    w = double(1, 2, 5) / 8
    mean = w @ mixture.means
    covs = mixture._covariances().expand(3, 3, 3) + mixture.means[:, :, None] * mixture.means[:, None]
    cov = torch.einsum("k,kij->ij", w, covs) - mean[:, None] * mean
    x = mixture.draw(n, seed=5)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=5 * float(cov.diagonal().max() / n) ** 0.5)
    torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=8 * float(cov.max()) / n**0.5)
    xt = mixture.denoiser(Corruption(schedule.Flow())).draw(n, 0.25, seed=5)
    torch.testing.assert_close(xt.T.cov(), 0.75**2 * cov + 0.25**2 * torch.eye(3).double(), rtol=0, atol=0.05)
    assert torch.equal(mixture.draw(3, seed=5), x[:3])


def test_component_without_variance_is_an_atom():
    mixture = Mixture(double(1, 1), double(-1, 1)[:, None], 0.0)
    denoiser = mixture.denoiser(Corruption(schedule.Flow()))
    assert denoiser(double(-0.9, 0.2)[:, None], 0.0).mean.flatten().tolist() == [-1.0, 1.0]
    with pytest.raises(UserError):
        denoiser.score(double(1)[:, None], 0.0)
    with pytest.raises(UserError):
        mixture.log_prob(double(1)[:, None])


@pytest.mark.parametrize(
    "arguments",
    [
        (double(1, -1), double(0, 1)[:, None], 1.0),
        (double(0, 0), double(0, 1)[:, None], 1.0),
        (double(1), double(0, 1)[:, None], 1.0),
        (double(1, 1), double(0, 1)[:, None], -1.0),
        (double(1, 1), double(0, 1)[:, None], double(1, 1, 1)),
        (double(1), torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])),
        (double(1), torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])),
        (double(1), torch.tensor([[float("nan")]]), 1.0),
    ],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(UserError):
        Mixture(*arguments)


def test_processes_that_do_not_fit_are_refused():
    for process in (Masking(3), Corruption(schedule.VP(), Centred())):
        with pytest.raises(UserError):
            full().denoiser(process)


def test_gaussian_is_the_mixture_of_one():
    cov = torch.tensor([[1.0, 0.3], [0.3, 0.2]], dtype=torch.float64)
    one, other = Gaussian(double(1, 2), cov), Mixture(double(7), double(1, 2)[None], cov[None])
    process = Corruption(schedule.EDM())
    x = one.denoiser(process).draw(4, 0.3)
    torch.testing.assert_close(one.denoiser(process)(x, 0.3).mean, other.denoiser(process)(x, 0.3).mean)
    assert Gaussian(torch.zeros(2, 3), 0.5).draw(5).shape == (5, 2, 3)
    assert Gaussian(torch.zeros(2, 3), torch.full((2, 3), 0.5)).log_prob(torch.zeros(1, 2, 3)) == pytest.approx(
        -3 * math.log(2 * math.pi * 0.5)
    )
