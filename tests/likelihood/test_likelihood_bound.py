"""Every term of the bound against closed forms on Gaussians and quadratures on mixtures; nothing here is random."""

import math

import pytest
import torch
from fixed import Fixed, cubature, hermite, legendre, mean_over_copies

from backdrift import schedule
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.exact import Gaussian, Mixture
from backdrift.likelihood import Continuous, DiscretisedGaussian, Steps, bound
from backdrift.posterior import TensorPosterior
from backdrift.process import Centred
from backdrift.process import Gaussian as Corruption
from backdrift.sample.grids import LogSNR

MEAN = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.09, 0.5, 1.7], dtype=torch.float64)
X = torch.tensor([[0.1, -0.2, 2.0], [0.7, -1.5, -0.4]], dtype=torch.float64)


def two_bumps(process):
    return Mixture(
        torch.tensor([1.0, 2.0]), torch.tensor([[-0.6], [0.5]], dtype=torch.float64), torch.tensor([0.02, 0.06])
    ).denoiser(process)


def squared_error(alpha, sigma):
    """E over eps of (x_0 - E[x_0 | x_t])^2, (2, 3)."""
    k = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    return ((1 - k * alpha) * (X - MEAN)) ** 2 + (k * sigma) ** 2


@pytest.mark.parametrize("large", [False, True])
def test_every_step_is_ddpms_kl_in_closed_form(large):
    # DDPM's own formulas, from its betas: Ho et al. 2020, Eq. 6 and 7
    betas = torch.linspace(0.01, 0.4, 12, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    process = Corruption(schedule.Tabulated(tuple(bar.tolist())))
    x, noise = cubature(X)
    found = bound(Gaussian(MEAN, VARIANCE).denoiser(process), x, Steps(12, fraction=float(large)), noise=noise)
    costs = []
    for k in range(11, 0, -1):
        before = bar[k - 1]
        small = (1 - before) / (1 - bar[k]) * betas[k]
        weight = before.sqrt() * betas[k] / (1 - bar[k])
        gap = weight**2 * squared_error(bar[k].sqrt(), (1 - bar[k]).sqrt())
        var = betas[k] if large else small
        costs.append(((var / small).log() / 2 + (small + gap) / (2 * var) - 0.5).sum(1))
    torch.testing.assert_close(mean_over_copies(found.denoising, 3), torch.stack(costs, 1), rtol=1e-6, atol=1e-9)
    prior = (bar[-1] / (1 - bar[-1]) * X**2 / 2).sum(1)
    torch.testing.assert_close(mean_over_copies(found.prior, 3), prior, rtol=1e-6, atol=1e-9)
    std = ((1 - bar[0]) / bar[0]).sqrt()
    error = squared_error(bar[0].sqrt(), (1 - bar[0]).sqrt())
    decoded = (-error / (2 * std**2) - (2 * math.pi * std**2).log() / 2).sum(1)
    torch.testing.assert_close(mean_over_copies(found.reconstruction, 3), decoded, rtol=1e-6, atol=1e-9)
    total = decoded - prior - torch.stack(costs, 1).sum(1)
    torch.testing.assert_close(mean_over_copies(found.nats, 3), total, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sch", [schedule.VP(), schedule.Flow(), schedule.VE(), schedule.EDM()])
def test_the_continuous_limit_is_the_integral_in_closed_form(sch):
    nodes, weights = legendre(8)
    x, noise = cubature(X)
    # every copy at every node of the strata
    x, eps, level = x.repeat(8, 1), noise.eps.repeat(8, 1), nodes.repeat_interleave(6)
    denoiser = Gaussian(MEAN, VARIANCE).denoiser(Corruption(sch))
    found = bound(denoiser, x, Continuous(16), noise=Fixed(eps, level))
    cost = (weights[:, None] * mean_over_copies(found.denoising.sum(1), 3).view(8, 2)).sum(0)

    def primitive(g):
        c = 1 + VARIANCE * g
        return (c.log() + 1 / c - (X - MEAN) ** 2 / VARIANCE / c) / 2

    ends = [float(a / s) ** 2 for a, s in map(sch.alpha_sigma, (Continuous().end(sch), 1.0))]
    torch.testing.assert_close(cost, (primitive(ends[0]) - primitive(ends[1])).sum(1), rtol=1e-6, atol=1e-9)


def test_isotropic_gaussians_leave_nothing_to_chance():
    denoiser = Gaussian(MEAN, 0.25 * torch.ones((), dtype=torch.float64)).denoiser(Corruption(schedule.Cosine()))
    found = bound(denoiser, X, Steps(20), draws=3)
    assert float(found.error.max()) < 1e-9
    assert bound(denoiser, X, Continuous(20)).error.max() > 1e-4  # its times are random
    torch.testing.assert_close(found.map.sum(1), found.nats)
    torch.testing.assert_close(found.nats, found.reconstruction - found.denoising.sum(1) - found.prior)


def mean_bound(process, ladder):
    """(E bound, E log p) over the data, by quadratures over x and eps."""
    denoiser = two_bumps(process)
    x = torch.linspace(-1.8, 2, 96, dtype=torch.float64)[:, None]
    exact = denoiser.distribution.log_prob(x)
    nodes, weights = hermite(12)
    noise = Fixed(nodes.repeat(len(x))[:, None], torch.full((12 * len(x),), 0.5))
    found = bound(denoiser, x.repeat_interleave(12, 0), ladder, noise=noise).nats.view(-1, 12) @ weights
    share = exact.exp() * (x[1, 0] - x[0, 0])
    assert abs(float(share.sum()) - 1) < 1e-8
    return float(share @ found), float(share @ exact)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_bound_stays_below_the_exact_value_and_rises_to_it(fraction):
    process = Corruption(schedule.Cosine())
    gaps = []
    for steps in (8, 32, 128):
        # more steps between the same two ends
        found, exact = mean_bound(process, Steps(steps, fraction, LogSNR(-8, 10)))
        gaps.append(exact - found)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.4 * gaps[1]


def test_the_continuous_bound_is_tight():
    found, exact = mean_bound(Corruption(schedule.Flow()), Continuous(80))
    assert 0 < exact - found < 1e-3


def test_the_last_step_may_start_anywhere():
    denoiser = Gaussian(MEAN, VARIANCE).denoiser(Corruption(schedule.Cosine()))
    uniform, again = (bound(denoiser, X, ladder) for ladder in (Steps(20), Steps(20, first=1 / 20)))
    torch.testing.assert_close(uniform.map, again.map)
    assert Steps(7, first=0.01).end(schedule.Cosine()) == 0.01
    assert bound(denoiser, X, Steps(7, first=0.01)).denoising.shape == (2, 6)


def test_drawn_steps_average_to_all_steps():
    denoiser = Gaussian(MEAN, VARIANCE).denoiser(Corruption(schedule.VP()))
    count = 3000
    level = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    eps = torch.tensor([[0.3, -1.0, 0.4]], dtype=torch.float64).expand(count, -1)
    x = X[:1].expand(count, -1)
    drawn = bound(denoiser, x, Steps(30, evaluations=3), noise=Fixed(eps, level)).denoising.sum(1).mean()
    every = bound(denoiser, X[:1], Steps(30), noise=Fixed(eps[:1], level[:1])).denoising.sum()
    assert float(drawn) == pytest.approx(float(every), rel=2e-3)


class WithFraction(Denoiser):
    """Says how much of the larger variance to take."""

    def __init__(self, inner, fraction):
        super().__init__()
        self.inner, self.fraction = inner, fraction
        self.process, self.event_shape = inner.process, inner.event_shape

    def forward(self, xt, t, cond=None):
        mean = self.inner(xt, t, cond).mean
        return TensorPosterior(mean, self.fraction(mean))


def test_a_learned_variance_takes_precedence():
    inner = two_bumps(Corruption(schedule.Cosine()))
    x = torch.tensor([[0.1], [-0.7]], dtype=torch.float64)
    noise = Fixed(torch.ones(2, 1).double(), torch.full((2,), 0.5))
    found = bound(WithFraction(inner, lambda mean: 0.3 + 0 * mean), x, Steps(10, fraction=1.0), noise=noise)
    # without a learned one the scale of the data is another, but at eps = 1 nothing of it is left
    torch.testing.assert_close(found.nats, bound(inner, x, Steps(10, fraction=0.3), noise=noise).nats)


def test_a_learned_variance_counts_with_its_own_error():
    schedule_, inner = schedule.Flow(), two_bumps(Corruption(schedule.Flow()))
    x, eps = torch.tensor([[0.45]], dtype=torch.float64), torch.tensor([[0.8]], dtype=torch.float64)
    learned = WithFraction(inner, lambda mean: (mean > 0).double())
    found = bound(learned, x, Steps(3), noise=Fixed(eps, torch.full((1,), 0.5)))
    (alpha_t, alpha_s), (sigma_t, sigma_s) = schedule_.alpha_sigma(torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))
    added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    small, weight = sigma_s**2 * added / sigma_t**2, alpha_s * added / sigma_t**2
    costs = []
    for side in (eps, -eps):
        mean = inner(alpha_t * x + sigma_t * side, 2 / 3).mean
        var = added if mean > 0 else small
        costs.append((var / small).log() / 2 + (small + (weight * (x - mean)) ** 2) / (2 * var) - 0.5)
    assert (costs[0] - costs[1]).abs() > 0.05
    assert float(found.denoising[0, 1]) == pytest.approx(float(sum(costs) / 2), rel=1e-9)


def test_labels_are_followed():
    labelled = Mixture(
        torch.ones(2), torch.tensor([[-0.6], [0.5]], dtype=torch.float64), torch.tensor([0.04, 0.04]),
        labels=torch.tensor([0, 1]),
    )  # fmt: skip
    process = Corruption(schedule.Cosine())
    x = torch.tensor([[0.4], [-0.5]], dtype=torch.float64)
    cond = {"label": torch.tensor([1, 0])}
    found = bound(labelled.denoiser(process), x, Continuous(40), cond=cond, draws=8)
    exact = labelled.log_prob(x, cond)
    assert bool(((found.nats - exact).abs() < 4 * found.error + 1e-3).all())


def test_the_decoder_is_the_mass_of_the_bin():
    from scipy import stats

    levels = 8
    decoder, x = DiscretisedGaussian(levels), torch.linspace(-1, 1, levels, dtype=torch.float64)
    for mean, std in ((0.1, 0.3), (0.9, 0.05), (-3.0, 0.1)):
        found = decoder.log_prob(x, torch.full_like(x, mean), std)
        assert float(found.exp().sum()) == pytest.approx(1, abs=1e-12)
        law = stats.norm(mean, std)
        inner = [law.logcdf(float(v) + 1 / 7) for v in x]
        assert float(found[0]) == pytest.approx(inner[0], abs=1e-9)
        mass = law.cdf(float(x[3]) + 1 / 7) - law.cdf(float(x[3]) - 1 / 7)
        assert float(found[3].exp()) == pytest.approx(mass, abs=1e-12)
    assert float(found[-1]) == pytest.approx(stats.norm(-3, 0.1).logsf(6 / 7), rel=1e-9)


def test_bounds_of_all_levels_add_up_to_less_than_one():
    levels = 16
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    denoiser = two_bumps(Corruption(schedule.Cosine()))
    nodes, weights = hermite(12)
    noise = Fixed(nodes.repeat(levels)[:, None], torch.full((12 * levels,), 0.5))
    copies = x.repeat_interleave(12, 0)
    for steps in (6, 30):
        ladder = Steps(steps, 1.0, LogSNR(-8, 6))
        found = bound(denoiser, copies, ladder, decoder=DiscretisedGaussian(levels), noise=noise)
        total = float((found.nats.view(-1, 12) @ weights).exp().sum())
        assert total < 1
    assert total > 0.8


def test_mistakes_are_one_sentence():
    process = Corruption(schedule.Cosine())
    denoiser = two_bumps(process)
    x = torch.zeros(3, 1)
    for call, words in (
        (lambda: bound(denoiser, torch.zeros(3, 2)), "knows events"),
        (lambda: bound(denoiser, x.long()), "floating-point"),
        (lambda: bound(denoiser, x / 0), "finite"),
        (lambda: bound(denoiser, x, draws=1), "at least 2 draws"),
        (lambda: bound(denoiser, x, decoder=DiscretisedGaussian()), "256 levels"),
        (lambda: bound(denoiser, x, Continuous(first=1.0)), "first time"),
        (lambda: bound(denoiser, x, cond={"label": torch.zeros(2)}), "2 values of label for 3"),
        (lambda: bound(denoiser, torch.zeros(0, 1)), "data are"),
        (lambda: Steps(1), "at least 2 steps"),
        (lambda: Steps(5, fraction=2.0), "between 0"),
        (lambda: Steps(5, evaluations=0), "at least 1"),
        (lambda: Continuous(0), "at least 1"),
        (lambda: DiscretisedGaussian(1), "2 levels"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    denoiser.process = Corruption(schedule.Cosine(), Centred())
    with pytest.raises(UserError, match="projection"):
        bound(denoiser, x)
