"""The flow's log-density against closed forms: value, order, normalisation, labels, and what the prior misses."""

import itertools
import math

import pytest
import torch

from backdrift import schedule
from backdrift.errors import UserError
from backdrift.exact import Gaussian, Mixture
from backdrift.likelihood import Hutchinson, HutchPP, density
from backdrift.noise import Noise
from backdrift.process import Gaussian as Corruption


def three(labels=None):
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
    return Mixture(torch.tensor([0.3, 0.5, 0.2]), means, torch.tensor([0.05, 0.1, 0.2]), labels)


def smoothed(denoiser, x, first):
    """log p of x_first / alpha at x: what the flow integrates from `first`."""
    alpha, _ = denoiser.process.schedule.alpha_sigma(first)
    return denoiser.log_prob(alpha * x, first) + x.shape[1] * math.log(alpha)


def test_a_mixture_at_400_steps():
    denoiser = three().denoiser(Corruption(schedule.Cosine()))
    x = three().draw(4, seed=1)
    found = density(denoiser, x, steps=400)
    assert float((found.nats - three().log_prob(x)).abs().max()) < 1e-3
    assert found.error.tolist() == [0.0] * 4
    # and without the noise at the start it is exact
    first = float(schedule.Cosine().time(2 * math.log(1e3)))
    assert float((found.nats - smoothed(denoiser, x, first)).abs().max()) < 1e-7


@pytest.mark.parametrize("sch", [schedule.Flow(), schedule.Cosine()])
def test_fourth_order(sch):
    denoiser, first = three().denoiser(Corruption(sch)), float(sch.time(2 * math.log(20)))
    x = three().draw(8, seed=2)
    exact = smoothed(denoiser, x, first)
    errors = [float((density(denoiser, x, steps=n, first=first).nats - exact).abs().mean()) for n in (12, 24, 48)]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < math.log2(coarse / fine) < 5


def test_gaussians_share_by_share():
    variance = torch.tensor([0.04, 0.5, 2.0], dtype=torch.float64)
    law = Gaussian(torch.tensor([0.2, -1.0, 0.0], dtype=torch.float64), variance)
    x = law.draw(5, seed=0)
    found = density(law.denoiser(Corruption(schedule.Trig())), x, steps=100)
    wide = variance + 1e-6
    exact = -((x - law.means) ** 2 / wide + (2 * math.pi * wide).log()) / 2
    torch.testing.assert_close(found.map, exact, rtol=1e-6, atol=1e-6)


def test_it_integrates_to_one():
    side = torch.linspace(-3.2, 3.2, 60, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    denoiser = three().denoiser(Corruption(schedule.Flow()))
    found = density(denoiser, x, steps=16).nats
    assert float(found.exp().sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("sch", [schedule.VP(), schedule.VE()])
def test_the_prior_is_all_that_a_schedule_misses(sch):
    denoiser, x = three().denoiser(Corruption(sch)), three().draw(6, seed=3)
    first = max(0.0, float(sch.time(2 * math.log(100))))
    miss = density(denoiser, x, steps=60, first=first).nats - smoothed(denoiser, x, first)
    alpha, sigma = sch.alpha_sigma(first)
    end = denoiser.flow(alpha * x, first, 1.0, steps=60)
    _, sigma = sch.alpha_sigma(1.0)
    prior = -(end**2 / sigma**2 + (2 * math.pi * sigma**2).log()).sum(1) / 2
    torch.testing.assert_close(miss, prior - denoiser.log_prob(end, 1.0), rtol=0, atol=1e-5)
    assert float(miss.abs().max()) > 1e-4


def test_schedules_with_one_end_agree():
    x = three().draw(5, seed=4)
    found = [density(three().denoiser(Corruption(s)), x, steps=12).nats for s in (schedule.Flow(), schedule.Trig())]
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)


def test_labels_are_followed():
    law = three(torch.tensor([0, 1, 1]))
    x, cond = law.draw(4, seed=5), {"label": torch.tensor([0, 1, 1, 2])}
    found = density(law.denoiser(Corruption(schedule.Cosine())), x, steps=60, cond=cond)
    torch.testing.assert_close(found.nats, law.log_prob(x, cond), rtol=0, atol=1e-3)


def test_random_traces_agree_within_their_error():
    means = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = Mixture(torch.ones(4), means, 0.1).denoiser(Corruption(schedule.Cosine()))
    x = denoiser.distribution.draw(12, seed=0)
    exact = density(denoiser, x, steps=4)
    for trace in (Hutchinson(40), HutchPP(2, 40)):
        found = density(denoiser, x, steps=4, trace=trace)  # the trace does not move the path
        z = (found.nats - exact.nats) / found.error
        assert 0.4 < float(z.square().mean().sqrt()) < 2, trace
        torch.testing.assert_close(found.map.sum(1), found.nats)
    # the probes are the samples' own
    some = density(denoiser, x[5:7], steps=4, trace=trace, noise=Noise(0, torch.tensor([5, 6])))
    torch.testing.assert_close(some.nats, found.nats[5:7])


def test_float32_and_a_batch_of_pictures():
    law = Gaussian(torch.zeros(1, 2, 2), 0.25)
    x = law.draw(3, seed=0)
    found = density(law.denoiser(Corruption(schedule.Cosine())), x, steps=20)
    assert found.map.shape == x.shape and found.map.dtype == torch.float64
    torch.testing.assert_close(found.nats, law.log_prob(x).double(), rtol=0, atol=1e-3)


def test_mistakes():
    denoiser = three().denoiser(Corruption(schedule.Cosine()))
    with pytest.raises(UserError, match="at least 1 steps"):
        density(denoiser, torch.zeros(2, 2), steps=0)
    with pytest.raises(UserError, match="must lie in"):
        density(denoiser, torch.zeros(2, 2), first=0.0)
