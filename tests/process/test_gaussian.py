import itertools
import math

import pytest
import torch

from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.posterior import TensorPosterior
from backdrift.process import Centred, Gaussian
from backdrift.schedule import VE, VP, Cosine, Flow, Shifted, Tabulated, Trig

SCHEDULES = [VP(), Cosine(), VE(), Flow(), Trig(), Shifted(Flow(), 3.0), Tabulated.linear()]
every = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
TIMES = [(0.2, 0.7), (0.01, 0.02), (0.5, 0.99), (0.3, 1.0), (0.999, 1.0)]


class Constant:
    """A source whose every normal draw is one number: reads the mean (0) and the deviation (1) off a linear map."""

    def __init__(self, value):
        self.value = value

    def normal(self, like):
        return torch.full_like(like, self.value)


def affine(function):
    """(value at zero noise, gain of the noise)."""
    zero, one = function(Constant(0.0)), function(Constant(1.0))
    return zero, one - zero


def state(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every
def test_corruption_has_the_schedules_mean_and_deviation(schedule):
    process, x0 = Gaussian(schedule), state(3, 2)
    for t in (0.0, 0.1, 0.6, 1.0):
        alpha, sigma = schedule.alpha_sigma(t)
        mean, std = affine(lambda noise, t=t: process.corrupt(x0, t, noise))
        torch.testing.assert_close(mean, alpha * x0, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(std, sigma.expand(3, 2), rtol=1e-12, atol=1e-15)


@every
def test_corrupting_in_two_steps_is_corrupting_in_one(schedule):
    """Chapman and Kolmogorov: means compose and variances add."""
    process, x0 = Gaussian(schedule), state(3, 2)
    for s, t in TIMES:
        middle, first = affine(lambda noise, s=s: process.corrupt(x0, s, noise))
        mean, second = affine(lambda noise, x=middle, s=s, t=t: process.corrupt(x, t, noise, start=s))
        _, carried = affine(lambda noise, s=s, t=t: process.corrupt(noise.normal(x0), t, Constant(0.0), start=s))
        alpha, sigma = schedule.alpha_sigma(t)
        torch.testing.assert_close(mean, alpha * x0, rtol=1e-12, atol=1e-14)
        variance = (carried * first) ** 2 + second**2
        torch.testing.assert_close(variance, (sigma**2).expand(3, 2), rtol=1e-10, atol=1e-14)


@every
def test_standing_still_changes_nothing(schedule):
    process, x, noise = Gaussian(schedule), state(3, 2), Noise.of(0, 3)
    for t in (0.0, 0.4, 1.0):
        assert torch.equal(process.corrupt(x, t, noise, start=t), x)
    for t in (0.4, 1.0):
        assert torch.equal(process.bridge(x, TensorPosterior(x + 1), t, t, noise), x)


def conditioned(schedule, s, t):
    """Mean's coefficients on (x_0, x_t) and variance of x_s, from the 3 x 3 covariance of (x_0, x_s, x_t).

    x_0 is given a unit variance of its own, and the noise of x_t is written as that of x_s plus fresh noise.
    """
    (a_s, s_s), (a_t, s_t) = ((float(v) for v in schedule.alpha_sigma(u)) for u in (s, t))
    ratio = a_t / a_s
    fresh = math.sqrt(s_t**2 - (ratio * s_s) ** 2)
    # rows of x_0, x_s, x_t in terms of three independent normals
    rows = torch.tensor([[1.0, 0, 0], [a_s, s_s, 0], [a_t, ratio * s_s, fresh]], dtype=torch.float64)
    cov = rows @ rows.T
    given = [0, 2]
    gain = torch.linalg.solve(cov[given][:, given], cov[given, 1])
    return gain, cov[1, 1] - cov[1, given] @ gain


@every
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_the_bridge_is_the_conditional_of_a_joint_gaussian(schedule, s, t):
    process, xt, x0 = Gaussian(schedule), state(3, 2), state(3, 2, seed=1)
    (on_x0, on_xt), variance = conditioned(schedule, s, t)
    mean, std = affine(lambda noise: process.bridge(xt, TensorPosterior(x0), t, s, noise))
    torch.testing.assert_close(mean, on_x0 * x0 + on_xt * xt, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(std**2, variance.expand(3, 2), rtol=1e-6, atol=1e-10)


@every
def test_bridges_with_the_true_x0_keep_the_marginal(schedule):
    """x_t ~ q(x_t | x_0), then x_s from the bridge, has the law q(x_s | x_0)."""
    process, x0 = Gaussian(schedule), state(3, 2)
    for s, t in TIMES:
        mean_t, std_t = affine(lambda noise, t=t: process.corrupt(x0, t, noise))
        mean, std = affine(lambda noise, x=mean_t, s=s, t=t: process.bridge(x, TensorPosterior(x0), t, s, noise))
        gain = process.bridge(mean_t + 1, TensorPosterior(x0), t, s, Constant(0.0)) - mean
        alpha, sigma = schedule.alpha_sigma(s)
        torch.testing.assert_close(mean, alpha * x0, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close((gain * std_t) ** 2 + std**2, (sigma**2).expand(3, 2), rtol=1e-9, atol=1e-14)


def test_the_learned_variance_runs_between_the_two_of_ddpm():
    table = Tabulated.linear()
    process = Gaussian(table)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    for k in (1, 10, 500, 999):
        large, small = betas[k], betas[k] * (1 - bar[k - 1]) / (1 - bar[k])
        for fraction, variance in ((None, small), (0.0, small), (1.0, large), (0.3, large**0.3 * small**0.7)):
            learned = None if fraction is None else torch.full((1, 2), fraction, dtype=torch.float64)
            posterior = TensorPosterior(state(1, 2), learned)
            times = table.time_of_step(k), table.time_of_step(k - 1)
            _, std = affine(lambda noise, q=posterior, times=times: process.bridge(state(1, 2), q, *times, noise))
            torch.testing.assert_close(std**2, variance.expand(1, 2), rtol=1e-8, atol=0)


def test_ddpm_posterior_mean_as_published():
    """Ho et al. 2020, Eq. 7, from betas alone."""
    table = Tabulated.linear()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    xt, x0, k = state(2, 3), state(2, 3, seed=1), 300
    expected = bar[k - 1].sqrt() * betas[k] / (1 - bar[k]) * x0
    expected = expected + (1 - betas[k]).sqrt() * (1 - bar[k - 1]) / (1 - bar[k]) * xt
    drawn = Gaussian(table).bridge(
        xt, TensorPosterior(x0), table.time_of_step(k), table.time_of_step(k - 1), Constant(0.0)
    )
    torch.testing.assert_close(drawn, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fraction", [None, 0.0, 0.5, 1.0])
def test_a_bridge_to_clean_data_returns_x0_exactly(dtype, fraction):
    x0, xt = state(3, 2).to(dtype), state(3, 2, seed=1).to(dtype)
    learned = None if fraction is None else torch.full_like(x0, fraction)
    for schedule, t in itertools.product([VP(), Cosine(), Flow(), Trig(), Tabulated.linear()], (1e-6, 0.3, 1.0)):
        assert torch.equal(Gaussian(schedule).bridge(xt, TensorPosterior(x0, learned), t, 0.0, Noise.of(0, 3)), x0)


@every
def test_the_prior_is_the_end_of_the_corruption_of_nothing(schedule):
    process, like, noise = Gaussian(schedule), torch.empty(4, 3), Noise.of(5, 4)
    sigma = float(schedule.alpha_sigma(1.0)[1])
    torch.testing.assert_close(process.prior(like, noise), sigma * noise.normal(like))
    torch.testing.assert_close(process.prior(like, noise), process.corrupt(torch.zeros(4, 3), 1.0, noise))


def test_times_per_sample_agree_with_one_time_each():
    process, noise = Gaussian(VP()), Noise.of(0, 3)
    x0, xt, fraction = state(3, 2, 2), state(3, 2, 2, seed=1), torch.rand(3, 2, 2, dtype=torch.float64)
    t, s = torch.tensor([0.3, 0.5, 0.9]).double(), torch.tensor([0.0, 0.5, 0.1]).double()
    points = state(4, 2, 2, seed=2)
    together = (
        process.corrupt(x0, t, noise),
        process.corrupt(x0, t, noise, start=s),
        process.bridge(xt, TensorPosterior(x0, fraction), t, s, noise),
        process.log_likelihood(xt, points, t),
    )
    for i in range(3):
        one, (ti, si), n = slice(i, i + 1), (float(t[i]), float(s[i])), Noise(0, torch.tensor([i]))
        alone = (
            process.corrupt(x0[one], ti, n),
            process.corrupt(x0[one], ti, n, start=si),
            process.bridge(xt[one], TensorPosterior(x0[one], fraction[one]), ti, si, n),
            process.log_likelihood(xt[one], points, ti),
        )
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[one], b, rtol=1e-14, atol=1e-14)


def test_states_keep_their_dtype():
    x, noise = state(3, 2).float(), Noise.of(0, 3)
    process = Gaussian(VP())
    t = torch.tensor([0.3, 0.5, 0.9]).double()
    assert process.corrupt(x, t, noise).dtype == torch.float32
    assert process.bridge(x, TensorPosterior(x, torch.ones_like(x)), t, t / 2, noise).dtype == torch.float32
    assert process.prior(x, noise).dtype == torch.float32


def test_corruption_backwards_is_refused():
    with pytest.raises(UserError, match="start lies after"):
        Gaussian(Flow()).corrupt(state(2, 2), 0.3, Noise.of(0, 2), start=0.4)
    with pytest.raises(UserError, match="start lies after"):
        Gaussian(Flow()).bridge(
            state(2, 2), TensorPosterior(state(2, 2)), 0.3, torch.tensor([0.1, 0.4]), Noise.of(0, 2)
        )


def test_projected_draws_stay_in_the_range():
    process, noise, like = Gaussian(Flow(), Centred()), Noise.of(0, 4), torch.empty(4, 5, 3, dtype=torch.float64)
    centre = Centred()
    x1 = process.prior(like, noise)
    x0 = centre(state(4, 5, 3))
    drawn = (x1, process.corrupt(x0, 0.4, noise), process.bridge(x1, TensorPosterior(x0), 1.0, 0.4, noise.at(1)))
    for x in drawn:
        assert x.mean(-2).abs().max() < 1e-15 and x.std() > 0.1
    # an orthogonal projection: idempotent, symmetric, and it leaves its range alone
    x, y = state(4, 5, 3), state(4, 5, 3, seed=1)
    torch.testing.assert_close(centre(centre(x)), centre(x), rtol=0, atol=1e-15)
    torch.testing.assert_close((centre(x) * y).sum(), (x * centre(y)).sum())


def test_the_loss_is_the_squared_distance():
    a, b = state(3, 2, 4), state(3, 2, 4, seed=1)
    expected = torch.stack(
        [sum((u - v) ** 2 for u, v in zip(x, y, strict=True)) for x, y in zip(a.flatten(1), b.flatten(1), strict=True)]
    )
    torch.testing.assert_close(Gaussian(Flow()).loss(TensorPosterior(a), b, None, 0.5), expected)


@every
def test_log_likelihood_is_the_gaussian_density(schedule):
    xt, points = state(3, 2, 2), state(5, 2, 2, seed=1)
    for t in (0.2, 0.9):
        alpha, sigma = schedule.alpha_sigma(t)
        law = torch.distributions.Normal((alpha * points)[None], sigma)
        expected = law.log_prob(xt[:, None]).flatten(2).sum(2)
        got = Gaussian(schedule).log_likelihood(xt, points, t)
        # equal up to a constant of the row
        torch.testing.assert_close(got - got[:, :1], expected - expected[:, :1], rtol=1e-9, atol=1e-9)


def test_log_likelihood_at_both_ends():
    points = state(5, 2)
    at_data = Gaussian(Flow()).log_likelihood(points[:3], points, 0.0)
    assert torch.equal(at_data.exp(), torch.eye(3, 5, dtype=torch.float64))
    at_noise = Gaussian(Flow()).log_likelihood(state(3, 2, seed=1), points, 1.0)
    assert torch.equal(at_noise, at_noise[:, :1].expand(3, 5)) and bool(at_noise.isfinite().all())


def test_belief_is_the_weighted_mean():
    points, weights = state(4, 2, 3), state(3, 4, seed=1).softmax(-1)
    belief = Gaussian(Flow()).belief(weights, points)
    torch.testing.assert_close(belief.mean, torch.einsum("bn,nij->bij", weights, points))
    assert belief.fraction is None
