"""Guided posterior samplers: exact where theory says so, and as wrong as theory says elsewhere."""

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.exact import Gaussian, Mixture
from backdrift.inverse import DPS, LGD, MMPS, TMPD, Exact, Function, Linear, NormDPS, PiGDM, RoundedNoise, ScoreALD
from backdrift.noise import Noise
from backdrift.process import Gaussian as Process

SCHEDULES = [bd.schedule.VP(), bd.schedule.Flow(), bd.schedule.EDM()]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact_gap(rule, prior, measurement, y, schedule, t):
    """The guided mean less the exact posterior's, at states drawn from p_t."""
    denoiser = prior.denoiser(Process(schedule))
    x = denoiser.draw(6, t)
    exact = prior.given(measurement, y).denoiser(Process(schedule))
    return (rule.guide(denoiser, measurement, y)(x, t).mean - exact(x, t).mean).abs().max()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.2, 0.6, 0.95])
def test_exact_on_the_gaussians_that_theory_names(schedule, t):
    C = random(3, 3)
    correlated, round_ = (
        Gaussian(random(3, seed=1), C @ C.mT),
        Gaussian(random(3, seed=1), torch.tensor(0.49, dtype=torch.float64)),
    )
    measurement, y = Linear(random(2, 3, seed=2), 0.3), random(2, seed=3)
    assert exact_gap(MMPS(iterations=20), correlated, measurement, y, schedule, t) < 1e-7
    assert exact_gap(PiGDM(prior_std=0.7), round_, measurement, y, schedule, t) < 1e-9
    assert exact_gap(TMPD(full=True), correlated, measurement, y, schedule, t) < 1e-9
    one = Linear(random(1, 3, seed=2), 0.3)
    assert exact_gap(TMPD(), correlated, one, y[:1], schedule, t) < 1e-9  # one number: its row sum is the matrix
    # and the other rules are off there, by much more than rounding
    assert exact_gap(DPS(), correlated, measurement, y, schedule, 0.6) > 1e-2
    assert exact_gap(PiGDM(prior_std=1.0), round_, measurement, y, schedule, 0.6) > 1e-3


def test_flat_prior_is_the_limit_of_a_wide_one():
    measurement, y = Linear(random(2, 3, seed=2), 0.3), random(2, seed=3)
    rule, schedule = PiGDM(prior_std=None), bd.schedule.VP()
    gaps = [exact_gap(rule, Gaussian(torch.zeros(3).double(), v), measurement, y, schedule, 0.5) for v in (1e4, 1e8)]
    assert gaps[1] < 0.02 * gaps[0]  # the gap falls as one over the prior's standard deviation


def test_score_ald_is_exact_for_a_flat_prior_and_orthonormal_rows():
    A = torch.linalg.qr(random(3, 2, seed=2))[0].mT
    measurement, y = Linear(A, 0.3), random(2, seed=3)
    flat = Gaussian(torch.zeros(3).double(), 1e8)
    assert exact_gap(ScoreALD(), flat, measurement, y, bd.schedule.VP(), 0.5) < 1e-2
    assert exact_gap(ScoreALD(spread=2.0), flat, measurement, y, bd.schedule.VP(), 0.5) > 0.1


def test_lgd_is_pigdm_by_monte_carlo():
    denoiser, t = Mixture(torch.ones(2), random(2, 3), 0.1).denoiser(Process(bd.schedule.VP())), 0.4
    measurement, y, x = Linear(random(2, 3, seed=2), 0.5), random(2, seed=3), random(5, 3, seed=4)
    closed = PiGDM(prior_std=0.5).guide(denoiser, measurement, y)(x, t).mean
    drawn = LGD(prior_std=0.5, draws=4000).guide(denoiser, measurement, y)(x, t).mean
    plain = denoiser(x, t).mean
    assert (drawn - closed).norm() < 0.08 * (closed - plain).norm()
    # fresh draws at another time, the same ones at the same
    few = LGD(draws=2).guide(denoiser, measurement, y)
    assert torch.equal(few(x, t).mean, few(x, t).mean)
    assert (few(x, t + 1e-9).mean - few(x, t).mean).abs().max() > 1e-4


def test_norm_dps_is_the_norms_gradient_of_each_sample():
    denoiser, t = Mixture(torch.ones(2), random(2, 3), 0.1).denoiser(Process(bd.schedule.VP())), 0.4
    measurement, y, x = Linear(random(2, 3, seed=2), 0.5), random(2, seed=3), random(5, 3, seed=4)
    moved = NormDPS(zeta=0.7).guide(denoiser, measurement, y)(x, t).mean - denoiser(x, t).mean
    alpha, sigma = (float(v) for v in bd.schedule.VP().alpha_sigma(t))
    for j in range(3):
        step = 1e-5 * torch.eye(3).double()[j]
        up, down = ((y - measurement.forward(denoiser(x + sign * step, t).mean)).norm(dim=1) for sign in (1, -1))
        expected = -0.7 * sigma**2 / alpha * (up - down) / 2e-5
        torch.testing.assert_close(moved[:, j], expected, rtol=1e-5, atol=1e-8)


def test_dps_gradient_is_the_chain_rule():
    prior = Gaussian(torch.zeros(2).double(), torch.tensor([1.0, 0.25]).double())
    denoiser, t = prior.denoiser(Process(bd.schedule.VP())), 0.5
    A, y, x = random(1, 2), torch.tensor([0.7]).double(), random(4, 2)
    alpha, sigma = (float(v) for v in bd.schedule.VP().alpha_sigma(t))
    J = torch.diag(torch.tensor([alpha / (alpha**2 + sigma**2), alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)]).double())
    mean = x @ J
    expected = mean + sigma**2 / alpha * ((y - mean @ A.mT) / 0.3**2) @ A @ J
    torch.testing.assert_close(DPS().guide(denoiser, Linear(A, 0.3), y)(x, t).mean, expected)


def mode_weight(rule, y, std, n=3000, steps=150):
    process = Process(bd.schedule.VP())
    prior = Mixture(torch.ones(2), torch.tensor([[-1.5], [1.5]]).double(), 0.04)
    measurement = Linear(torch.ones(1, 1).double(), std)
    draws = rule(prior.denoiser(process), measurement, torch.tensor(y).double(), n, steps=steps, noise=Noise.of(0, n))
    return float((draws > 0).double().mean()), float(prior.given(measurement, torch.tensor(y).double()).weights[1])


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        # the weight that each method gives to the right mode, where the exact posterior gives .988
        (Exact(solver=bd.solvers.DDIM(eta=1.0)), 0.98, 0.995),
        (DPS(), 0.995, 1.0),
        (PiGDM(prior_std=None), 0.74, 0.83),
        (TMPD(), 0.80, 0.88),
        (MMPS(), 0.80, 0.88),
    ],
)
def test_prior_modes_are_hallucinated_under_a_unimodal_posterior(rule, low, high):
    found, exact = mode_weight(rule, [1.0], 0.8)
    assert exact == pytest.approx(0.988, abs=1e-3)
    assert low <= found <= high


def test_mistakes_are_one_sentence():
    prior = Mixture(torch.ones(2), random(2, 3), 0.1)
    denoiser = prior.denoiser(Process(bd.schedule.VP()))
    square = Function(torch.square, (3,), 0.1)
    with pytest.raises(UserError, match="linear measurement"):
        PiGDM().guide(denoiser, square, torch.zeros(3))
    with pytest.raises(UserError, match="takes events"):
        DPS().guide(denoiser, Linear(random(2, 4), 0.1), torch.zeros(2))
    with pytest.raises(UserError, match="none"):
        DPS().guide(denoiser, Linear(random(2, 3), RoundedNoise(0.1)), torch.zeros(2))
