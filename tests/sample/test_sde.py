import itertools
import math

import pytest
import torch
from cases import SCHEDULES, GaussianData, MixtureData, fitted_order

from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.sample.grids import Angle, DataScaled
from backdrift.sample.sde import DDIM, DDPM
from backdrift.schedule import EDM, VP, Cosine, Flow

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every_schedule
def test_ddim_with_eta_1_is_ddpm(schedule):
    times = DataScaled().times(schedule, 9)
    one, other = DDIM(eta=1.0).plan(schedule, times), DDPM().plan(schedule, times)
    for name in ("states", "means", "noise"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12)
    assert torch.equal(one.noise_intervals, other.noise_intervals)


@every_schedule
@pytest.mark.parametrize("solver", [DDIM(), DDIM(0.4), DDIM(1.0), DDPM()], ids=repr)
def test_a_known_point_is_corrupted_and_restored_with_the_right_law_at_every_step(schedule, solver):
    """With data at one point, D is exact, and every row must have the marginal N(alpha m, sigma^2) of its time."""
    m, times = 0.7, DataScaled().times(schedule, 6)
    alpha, sigma = schedule.alpha_sigma(times)
    for last in range(1, 7):
        plan = solver.plan(schedule, times[: last + 1])
        mean, variance = plan.law(m, 0.0, start=(alpha[0] * m, sigma[0] ** 2))
        assert mean == pytest.approx(float(alpha[last]) * m, abs=1e-12)
        assert variance == pytest.approx(float(sigma[last]) ** 2, rel=1e-10, abs=1e-14)


def test_one_step_written_out():
    """DDPM in betas (Ho et al. 2020, Eq. 7) and DDIM in alphas (Song et al. 2021, Eq. 12 and 16)."""
    t, s, schedule = 0.6, 0.35, VP()
    bar_t, bar_s = (float(schedule.alpha_sigma(u)[0]) ** 2 for u in (t, s))
    beta = 1 - bar_t / bar_s
    tilde = (1 - bar_s) / (1 - bar_t) * beta
    for fraction, variance in ((0.0, tilde), (1.0, beta), (0.3, tilde**0.7 * beta**0.3)):
        plan = DDPM(fraction).plan(schedule, [t, s])
        assert float(plan.noise[1, 0]) ** 2 == pytest.approx(variance, rel=1e-12)
        assert plan.states[1, 1] == pytest.approx(math.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t), rel=1e-12)
        assert plan.means[1, 0] == pytest.approx(math.sqrt(bar_s) * beta / (1 - bar_t), rel=1e-12)
    for eta in (0.0, 0.5, 1.0):
        plan = DDIM(eta).plan(schedule, [t, s])
        c = eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s)
        on_eps = math.sqrt(1 - bar_s - c**2)
        assert plan.states[1, 1] == pytest.approx(on_eps / math.sqrt(1 - bar_t), rel=1e-12)
        expected = math.sqrt(bar_s) - on_eps * math.sqrt(bar_t) / math.sqrt(1 - bar_t)
        assert plan.means[1, 0] == pytest.approx(expected, rel=1e-12)
        assert plan.noise.sum() == pytest.approx(c, rel=1e-12, abs=0)


def test_the_last_step_to_the_data_adds_no_noise():
    for schedule in (Flow(), Cosine(), VP()):
        for solver in (DDPM(0.0), DDPM(1.0), DDIM(1.0)):
            assert not solver.plan(schedule, [1.0, 0.4, 0.0]).noise[-1].any()
    assert DDPM().plan(EDM(), [1.0, 0.4, 0.0]).noise[-1].any()


@every_schedule
@pytest.mark.parametrize("solver", [DDPM(), DDPM(1.0), DDIM(0.5), DDIM(1.0)], ids=repr)
def test_the_law_on_gaussian_data_converges_at_first_order(schedule, solver):
    v, counts, errors = 0.25, [50, 100, 200], []
    for n in counts:
        plan = solver.plan(schedule, DataScaled().times(schedule, n))
        alpha, sigma = schedule.alpha_sigma(1.0)
        _, variance = plan.law(0.0, v, (0.0, alpha**2 * v + sigma**2))
        errors.append(abs(float(variance) - v - float(schedule.alpha_sigma(0.0)[1]) ** 2))
    assert 0.9 <= fitted_order(counts, errors) <= 1.3, errors
    assert errors[-1] < 0.01


@pytest.mark.parametrize("schedule", [Flow(), VP(), EDM()], ids=lambda s: s.kind)
@pytest.mark.parametrize("solver", [DDPM(), DDIM(1.0), DDIM(0.6)], ids=repr)
def test_more_steps_refine_the_same_path(schedule, solver):
    """The strong error between n and 2n steps falls with n, far below that of independent noise."""
    count, denoiser = 300, MixtureData(schedule)
    noise, other = Noise.of(3, count), Noise.of(4, count)
    x1 = denoiser.process.prior(torch.zeros(count, 1, dtype=torch.float64), noise.at("prior"))

    def run(n, noise):
        return solver.run(denoiser, x1, DataScaled().times(schedule, n), noise=noise)

    runs = {n: run(n, noise) for n in (10, 20, 40, 80, 160)}
    gaps = [float((runs[n] - runs[2 * n]).abs().mean()) for n in (10, 20, 40, 80)]
    independent = float((runs[80] - run(160, other)).abs().mean())
    # with eta < 1 the first moments after pure noise are forgotten only slowly
    factor = 0.85 if solver == DDIM(0.6) and schedule == Flow() else 0.75
    assert all(after < factor * before for before, after in itertools.pairwise(gaps)), gaps
    assert gaps[-1] < 0.1 * independent, (gaps, independent)


def test_each_interval_of_the_path_belongs_to_its_step():
    times = Angle().times(Flow(), 5)
    for solver in (DDPM(), DDIM(0.5)):
        plan = solver.plan(Flow(), times)
        assert plan.noise_intervals.tolist() == [[float(t), float(s)] for t, s in itertools.pairwise(times)]
    assert len(DDIM().plan(Flow(), times).noise_intervals) == 0


def test_refusals():
    for call in (lambda: DDIM(eta=1.5), lambda: DDIM(eta=-0.1), lambda: DDPM(fraction=2.0), lambda: DDIM(math.nan)):
        with pytest.raises(UserError, match=r"in \[0, 1\], not"):
            call()
    with pytest.raises(UserError, match="stochastic"):
        DDPM().run(GaussianData(VP()), torch.zeros(1, 1), DataScaled().times(VP(), 3))
