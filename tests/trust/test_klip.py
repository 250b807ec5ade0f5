"""KLIP against closed forms: Gaussians, atoms, mixtures; what it sees and what it cannot see."""

import math

import pytest
import torch
from scipy import stats

import backdrift as bd
from backdrift.inverse import DPS, Exact, Function, Linear, PiGDM
from backdrift.trust.klip import Path, Renoised, klip

SCHEDULES = [bd.schedule.VP(), bd.schedule.EDM(), bd.schedule.Flow(), bd.schedule.Cosine()]


def draws(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian():
    root = draws(0, 3, 3)
    return draws(1, 3), root @ root.mT / 3 + 0.2 * torch.eye(3, dtype=torch.float64)


A, STD, Y = draws(2, 2, 3), 0.3, torch.tensor([1.0, -0.5], dtype=torch.float64)


def posterior(mean, cov, y=Y):
    gain = cov @ A.mT @ torch.linalg.inv(A @ cov @ A.mT + STD**2 * torch.eye(2, dtype=torch.float64))
    return mean + gain @ (y - A @ mean), cov - gain @ A @ cov


def divergence(mean, cov, y=Y):
    m, s = posterior(mean, cov, y)
    trace = torch.trace(torch.linalg.solve(cov, s)) + (m - mean) @ torch.linalg.solve(cov, m - mean)
    return float(trace - len(mean) + torch.logdet(cov) - torch.logdet(s)) / 2


class SigmaPoints:
    """Stands for a `Noise`: points with the first two moments of a standard normal, and the middle of every stratum."""

    def __init__(self, eps):
        self.eps, self.index = eps, torch.arange(len(eps))

    def at(self, *names):
        return self

    def normal(self, like):
        return self.eps

    def uniform(self, like):
        return torch.full_like(like, 0.5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_gaussian_divergence_by_quadrature(schedule):
    mean, cov = gaussian()
    prior = bd.exact.Gaussian(mean, cov)
    denoiser = prior.denoiser(bd.process.Gaussian(schedule))
    m, s = posterior(mean, cov)
    # the shift is linear in x_t, so that points with the right mean and covariance give its mean square exactly
    unit = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    x0 = (m + unit @ torch.linalg.cholesky(s).mT).repeat_interleave(6, 0)
    guided = prior.given(Linear(A, STD), Y).denoiser(denoiser.process)
    pieces = Renoised(400).pieces(denoiser, guided, x0, SigmaPoints(unit.repeat(6, 1)))
    total = sum(float((piece.width / 2 * piece.shift.square().sum(1)).mean()) for piece in pieces)
    assert total == pytest.approx(divergence(mean, cov), rel=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=lambda s: type(s).__name__)
def test_gaussian_divergence_by_draws(schedule):
    mean, cov = gaussian()
    denoiser = bd.exact.Gaussian(mean, cov).denoiser(bd.process.Gaussian(schedule))
    found = klip(Exact(), denoiser, Linear(A, STD), Y, 8000, batch=8000)
    assert abs(float(found.total) - divergence(mean, cov)) < 3.5 * float(found.stderr) < 0.1
    assert float(found.map.sum()) == pytest.approx(float(found.total), rel=1e-9)


@pytest.mark.parametrize("steps, within", [(50, 0.30), (200, 0.08)])
def test_path_of_the_exact_posterior_comes_down_to_its_divergence(steps, within):
    mean, cov = gaussian()
    denoiser = bd.exact.Gaussian(mean, cov).denoiser(bd.process.Gaussian(bd.schedule.Flow()))
    found = klip(Exact(), denoiser, Linear(A, STD), Y, 8000, steps=steps, estimator=Path(), batch=8000)
    exact = divergence(mean, cov)
    assert exact - 3 * float(found.stderr) < float(found.total) < (1 + within) * exact


@pytest.mark.parametrize(
    "measurement",
    [Linear(A, 0.7), Function(lambda x: (x @ A.to(x).mT).square(), (3,), 0.9)],
    ids=["linear", "square"],
)
def test_atoms(measurement):
    prior = bd.exact.Atoms(draws(3, 40, 3))
    after = prior.given(measurement, Y)
    exact = float((after.weights * (after.weights * 40).clamp_min(1e-300).log()).sum())
    found = klip(
        Exact(), prior.denoiser(bd.process.Gaussian(bd.schedule.VP())), measurement, Y, 4000,
        estimator=Renoised(48), batch=4000,
    )  # fmt: skip
    assert exact > 0.5
    assert abs(float(found.total) - exact) < 3.5 * float(found.stderr)


def mixture():
    means = torch.tensor([[-2.0, 0.0], [1.5, 1.0], [0.5, -2.0]], dtype=torch.float64)
    return bd.exact.Mixture(torch.tensor([0.5, 0.3, 0.2]), means, torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64))


def test_mixture_divergence_is_expected_log_likelihood_less_evidence():
    prior, seen = mixture(), Linear(torch.tensor([[1.0, 0.5]]).double(), 0.4)
    y = torch.tensor([0.7], dtype=torch.float64)
    after = prior.given(seen, y)
    likely = seen.log_likelihood(after.draw(40_000, 5), y)
    # p(y) is a mixture of normals of its own
    centre = prior.means @ seen.A[0]
    spread = (torch.tensor([0.3, 0.2, 0.4]).double() * 1.25 + 0.16).sqrt()
    evidence = float((prior.weights.log() + torch.distributions.Normal(centre, spread).log_prob(y)).logsumexp(0))
    exact = float(likely.mean()) - evidence
    found = klip(Exact(), prior.denoiser(bd.process.Gaussian(bd.schedule.EDM())), seen, y, 6000, batch=6000)
    assert abs(float(found.total) - exact) < 3.5 * float(found.stderr)


def test_the_path_of_an_approximate_sampler_costs_more_than_the_truth():
    prior, seen = mixture(), Linear(torch.tensor([[1.0, 0.5]]).double(), 0.4)
    denoiser, y = prior.denoiser(bd.process.Gaussian(bd.schedule.VP())), torch.tensor([0.7], dtype=torch.float64)

    def path(sampler):
        found = klip(sampler, denoiser, seen, y, 1500, steps=100, estimator=Path(), batch=1500)
        return float(found.total), float(found.stderr)

    exact, close, far = path(Exact()), path(PiGDM()), path(DPS())
    assert close[0] > exact[0] + 3 * math.hypot(close[1], exact[1])
    assert far[0] > 2 * close[0]


def test_mean_over_measurements_is_the_mutual_information():
    mean, cov = gaussian()
    prior, seen = bd.exact.Gaussian(mean, cov), Linear(A, STD)
    y = seen.draw(prior.draw(40, 7), bd.Noise.of(8, 40))
    denoiser = prior.denoiser(bd.process.Gaussian(bd.schedule.Flow()))
    found = klip(Exact(), denoiser, seen, y, 100, estimator=Renoised(12))
    each = torch.tensor([divergence(mean, cov, one) for one in y])
    # all measurements meet the same noise, so that their errors do not average out
    assert abs(float((found.total - each).mean())) < 4 * float(found.stderr.mean())
    information = float(torch.logdet(torch.eye(2) + A @ cov @ A.mT / STD**2)) / 2
    assert float(found.total.mean()) == pytest.approx(information, abs=4 * float(found.total.std()) / 40**0.5)


def field(seed=0):
    """A smooth field of 16 pixels of which the first half is measured."""
    place = torch.arange(16).double()
    cov = torch.exp(-((place[:, None] - place[None]) ** 2) / 8) + 0.02 * torch.eye(16)
    prior = bd.exact.Gaussian(torch.zeros(16).double(), cov)
    return prior, Linear(torch.eye(16).double()[:8], 0.2)


def test_a_bump_is_found_where_it_lies_and_called_bright():
    prior, seen = field()
    denoiser = prior.denoiser(bd.process.Gaussian(bd.schedule.Flow()))
    x = prior.draw(16, 1)
    bumped = x.clone()
    bumped[:, 3] += 2.0
    y = torch.cat([seen.draw(one, bd.Noise.of(2, 16)) for one in (x, bumped)])
    found = klip(Exact(), denoiser, seen, y, 8, estimator=Renoised(12))
    assert float(found.total[16:].mean()) > 1.5 * float(found.total[:16].mean())
    grown = (found.map[16:] - found.map[:16]).mean(0)
    assert int(grown.argmax()) == 3
    assert float((found.signed[16:] - found.signed[:16]).mean(0)[3]) > 0.9 * float(grown[3])


def test_what_lies_in_the_null_space_is_invisible_and_what_is_too_simple_scores_low():
    prior, seen = field()
    denoiser = prior.denoiser(bd.process.Gaussian(bd.schedule.Flow()))
    x = prior.draw(20, 1)
    hidden = x.clone()
    hidden[:, 12] += 5.0
    noise = bd.Noise.of(2, 20)
    usual, unseen, simple = (
        klip(Exact(), denoiser, seen, seen.draw(v, noise), 4, estimator=Renoised(12)) for v in (x, hidden, x / 2)
    )
    assert torch.equal(usual.total, unseen.total)
    assert float(simple.total.mean()) < float(usual.total.mean()) - 1
    assert float((simple.total < usual.total).double().mean()) > 0.8


def test_a_measurement_that_says_nothing_moves_nothing():
    mean, cov = gaussian()
    denoiser = bd.exact.Gaussian(mean, cov).denoiser(bd.process.Gaussian(bd.schedule.Flow()))
    found = klip(Exact(), denoiser, Linear(A, 1e4), Y, 64)
    assert 0 <= float(found.total) < 1e-5


@pytest.mark.parametrize("estimator", [Renoised(8), Path()], ids=lambda e: type(e).__name__)
def test_no_measurement_depends_on_its_neighbours(estimator):
    prior = mixture()
    denoiser, seen = prior.denoiser(bd.process.Gaussian(bd.schedule.VP())), Linear(torch.ones(1, 2).double(), 0.4)
    y = draws(4, 5, 1)
    many = klip(PiGDM(), denoiser, seen, y, 4, steps=10, estimator=estimator, batch=8)
    alone = klip(PiGDM(), denoiser, seen, y[3], 4, steps=10, estimator=estimator)
    for name in ("total", "stderr", "map", "signed", "draws"):
        assert torch.allclose(getattr(many, name)[3:4], getattr(alone, name), rtol=1e-9)
    assert torch.allclose(alone.mean, alone.draws.mean(1)) and alone.std.shape == (1, 2)


def test_p_values_are_uniform_where_nothing_is_wrong():
    prior, seen = field()
    denoiser = prior.denoiser(bd.process.Gaussian(bd.schedule.Flow()))
    y = seen.draw(prior.draw(160, 3), bd.Noise.of(4, 160))
    found = klip(Exact(), denoiser, seen, y, 4, estimator=Renoised(8))
    null = bd.trust.Null(found.total[:80], found.map[:80])
    for p in (null.two_sided(found.total[80:]), null.family(found.map[80:])):
        assert stats.kstest(p.numpy(), "uniform").pvalue > 0.005
    strange = klip(Exact(), denoiser, seen, 3 * y[:20], 4, estimator=Renoised(8))
    assert float(null.two_sided(strange.total).median()) < 0.05
    assert float(null.family(strange.map).median()) < 0.05


def test_bad_input():
    prior, seen = field()
    denoiser = prior.denoiser(bd.process.Gaussian(bd.schedule.Flow()))
    with pytest.raises(bd.UserError, match="at least 2 draws"):
        klip(Exact(), denoiser, seen, torch.zeros(8), 1)
    with pytest.raises(bd.UserError, match="compares two denoisers"):
        klip(lambda *a, **k: None, denoiser, seen, torch.zeros(8))
    with pytest.raises(bd.UserError, match="infinite or missing"):
        klip(Exact(), denoiser, seen, torch.full((8,), torch.nan))
    with pytest.raises(bd.UserError, match="single measurement"):
        Exact().guide(denoiser, seen, draws(0, 2, 8))
