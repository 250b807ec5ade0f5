"""Times that follow the loss: the mean stays, the variance falls, and nothing depends on the batch."""

import math

import pytest
import torch

from backdrift import objective as obj
from backdrift.config import from_config, to_config
from backdrift.errors import UserError
from backdrift.exact import Mixture
from backdrift.noise import Noise
from backdrift.process import Gaussian
from backdrift.schedule import VP, Flow

SKEWED = torch.tensor([[4.0, 2.0, 10], [90.0, 10.0, 10], [0.5, 8.0, 10], [32.0, 2.0, 10]], dtype=torch.float64)


def test_bins_are_drawn_by_the_root_mean_square_of_their_losses():
    law = obj.ByLoss(bins=4, floor=0.2)
    size = torch.tensor([math.sqrt(2), 3.0, 0.25, 4.0], dtype=torch.float64)
    torch.testing.assert_close(law.chances(SKEWED), 0.05 + 0.8 * size / size.sum())
    young = SKEWED.clone()
    young[2, 2] = 9  # one bin has not been seen often enough
    torch.testing.assert_close(law.chances(young), torch.full((4,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("base", [obj.Uniform(), obj.Angle(0.5), obj.LogitNormal()], ids=lambda b: type(b).__name__)
def test_the_mean_does_not_change_and_shares_are_exact(base):
    law, schedule, noise = obj.ByLoss(base, bins=4, floor=0.2), Flow(), Noise.of(0, 40_000)
    drawn, plain = law.draw(noise, schedule, SKEWED), base.times(noise, schedule)
    for f in (torch.ones_like, torch.square, torch.cos):
        assert float((drawn.share * f(drawn.t)).mean()) == pytest.approx(float(f(plain).mean()), abs=1e-3)
    counts = torch.bincount((drawn.place * 4).long(), minlength=4) / 40_000
    torch.testing.assert_close(counts.double(), law.chances(SKEWED), atol=1e-3, rtol=0)
    torch.testing.assert_close(drawn.t, base.within(drawn.place, schedule))
    assert float(drawn.share.max()) <= 1 / law.floor


def test_without_losses_it_is_its_base():
    law, noise = obj.ByLoss(obj.Angle(0.4), bins=8), Noise.of(3, 500)
    drawn = law.draw(noise, Flow(), law.memory())
    torch.testing.assert_close(drawn.t, law.base.times(noise, Flow()), atol=1e-9, rtol=0)
    torch.testing.assert_close(drawn.share, torch.ones(500, dtype=torch.float64))


def test_draws_are_keyed_by_sample():
    law, index = obj.ByLoss(bins=4), torch.tensor([400, 3, 77])
    alone = law.draw(Noise(5, index), Flow(), SKEWED)
    together = law.draw(Noise.of(5, 500), Flow(), SKEWED)
    assert all(torch.equal(a, b[index]) for a, b in zip(alone, together, strict=True))


def test_memory_fades_by_pictures():
    law = obj.ByLoss(bins=2, halflife=4)
    place = torch.tensor([0.1, 0.2, 0.7, 0.9], dtype=torch.float64)
    memory = law.learn(law.memory(), place, torch.tensor([1.0, 2.0, 3.0, 0.0]))
    torch.testing.assert_close(memory, torch.tensor([[5.0, 2, 2], [9, 2, 2]], dtype=torch.float64))
    memory = law.learn(memory, place[:2], torch.tensor([1.0, 1.0]))
    fade = 0.5**0.5
    expected = torch.tensor([[5 * fade + 2, 2 * fade + 2, 4], [9 * fade, 2 * fade, 2]], dtype=torch.float64)
    torch.testing.assert_close(memory, expected)


@pytest.mark.parametrize(
    "schedule, weight, share", [(Flow(), obj.Bound(), 0.1), (VP(), obj.MinSNR(), 0.5)], ids=["bound", "min-snr"]
)
def test_the_loss_of_a_mixture_is_estimated_with_less_variance(schedule, weight, share):
    # the bound on uniform times, whose losses span orders of magnitude, is Nichol and Dhariwal's own case
    process, base, n = Gaussian(schedule), obj.Uniform(), 2000
    mixture = Mixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.01, 0.04]))

    def losses(t, noise, step):
        x0, given = mixture.draw(n, seed=step), noise.at("noise")
        weigh = lambda t: weight(schedule, None, t)  # noqa: E731
        return obj.denoising(mixture.denoiser(process), x0, t, given, weight=weigh).double()

    law = obj.ByLoss(base)
    memory = law.memory()
    for step in range(8):
        noise = Noise(0, torch.arange(n) + step * n)
        drawn = law.draw(noise.at("time"), schedule, memory)
        loss = losses(drawn.t, noise, step)
        memory = law.learn(memory, drawn.place, loss)
    found, plain = drawn.share * loss, losses(base.times(noise.at("time"), schedule), noise, step)
    assert float(found.var()) < share * float(plain.var())
    error = (found.var() / n + plain.var() / n).sqrt()
    assert abs(float(found.mean() - plain.mean())) < 4 * float(error)


def test_choices_survive_json_and_bad_ones_are_refused():
    law = obj.ByLoss(obj.LogNormalSigma(-1.0, 0.5), bins=7)
    assert from_config(to_config(law)) == law
    for bad in ({"bins": 1}, {"halflife": 0}, {"floor": 0.0}, {"floor": 1.5}):
        with pytest.raises(UserError, match="at least 2 bins"):
            obj.ByLoss(**bad)
    with pytest.raises(UserError, match="plain law"):
        obj.ByLoss(obj.ByLoss())
