"""Laws of training times against their definitions, and the evenness of the sequence behind them."""

import math

import pytest
import torch

from backdrift import schedule as sch
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.objective import times as law

SCHEDULES = [sch.VP(), sch.Cosine(), sch.VE(), sch.EDM(), sch.Flow(), sch.Trig(), sch.Shifted(sch.Flow(), 3.0)]
U = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_quantiles_are_those_of_the_law(schedule):
    z = torch.distributions.Normal(0.0, 1.0).icdf(U)
    alpha, sigma = schedule.alpha_sigma(law.LogNormalSigma(-1.0, 0.8).quantile(U, schedule))
    torch.testing.assert_close((sigma / alpha).log(), -1.0 + 0.8 * z, atol=1e-6, rtol=1e-6)

    t = law.Angle(0.5).quantile(torch.linspace(0.01, 0.99, 9, dtype=torch.float64), schedule)
    alpha, sigma = schedule.alpha_sigma(t)
    gaps = torch.atan2(sigma, alpha * 0.5).diff()
    torch.testing.assert_close(gaps, gaps[:1].expand(8), atol=1e-9, rtol=1e-6)
    assert gaps[0] > 0

    t = law.LogitNormal(0.3, 0.7).quantile(U, schedule)
    torch.testing.assert_close((t / (1 - t)).log(), 0.3 + 0.7 * z, atol=1e-6, rtol=1e-6)


LAWS = [law.Uniform(), law.Angle(0.4), law.LogitNormal(0.3, 0.7), law.LogNormalSigma(-1.0, 0.8)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("times", LAWS, ids=lambda t: type(t).__name__)
def test_densities_are_the_slopes_of_the_quantiles(times, schedule):
    t = times.quantile(U, schedule)
    slope = (times.quantile(U + 1e-5, schedule) - times.quantile(U - 1e-5, schedule)) / 2e-5
    torch.testing.assert_close(times.density(t, schedule), 1 / slope, rtol=1e-4, atol=0)


def test_half_of_the_angles_have_more_noise_than_signal():
    alpha, sigma = sch.Trig().alpha_sigma(law.Angle(0.4).quantile(U, sch.Trig())[1])
    assert math.isclose(sigma, 0.4 * alpha, rel_tol=4e-3)  # the floor cuts 0.0025 off the clean end


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("times", [law.Uniform(), law.Angle(), law.LogitNormal(std=5.0), law.LogNormalSigma(std=9.0)])
def test_no_time_is_at_the_clean_end_or_beyond_the_other(schedule, times):
    t = times.times(Noise.of(0, 5000), schedule)
    alpha, sigma = schedule.alpha_sigma(t)
    assert t.dtype == torch.float64 and bool((t <= 1).all()) and bool((sigma >= 0.999 * law.FLOOR * alpha).all())


def test_sequence_is_spread_evenly_over_any_stretch_and_keyed_by_sample():
    for start in (0, 777, 2**40 + 5):
        index = torch.arange(256) + start
        u = law.spread(Noise(3, index).at("x")).sort().values
        grid = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
        assert float((u - grid).abs().max()) < 4 / 256  # independent draws: 0.05 to 0.1
        torch.testing.assert_close(u.diff()[:100].double().sum(), u[100] - u[0])
    alone = law.spread(Noise(3, torch.tensor([7, 2])))
    together = law.spread(Noise(3, torch.arange(20)))
    assert torch.equal(alone, together[[7, 2]])
    assert not torch.equal(law.spread(Noise(4, torch.arange(20))), together)
    assert not torch.equal(law.spread(Noise(3, torch.arange(20)).at("other")), together)


def test_each_sample_is_uniform_over_the_seeds():
    first = torch.tensor([float(law.spread(Noise.of(seed, 1))) for seed in range(400)]).sort().values
    distance = (first - (torch.arange(400) + 0.5) / 400).abs().max()
    assert float(distance) < 1.95 / 20  # Kolmogorov-Smirnov at 0.1 %


def test_constants_that_make_no_law_are_refused():
    with pytest.raises(UserError, match="positive std"):
        law.LogNormalSigma(std=0.0)
