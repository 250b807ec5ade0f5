"""The learned schedule against optimal importance sampling in closed form."""

import math

import pytest
import torch

from backdrift import schedule as sch
from backdrift import target as tgt
from backdrift.config import from_config, to_config
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.exact import Gaussian
from backdrift.nets import MLP
from backdrift.noise import Noise
from backdrift.objective import Bound, denoising, fit_schedule
from backdrift.process import Gaussian as Corruption
from backdrift.process import Masking
from backdrift.sample import sample

VARIANCE = torch.tensor([0.002, 0.04, 3.0], dtype=torch.float64)
GAUSSIAN = Gaussian(torch.zeros(3, dtype=torch.float64), VARIANCE)


def root_mean_square(schedule, w):
    """sqrt(E h^2) of Gaussian data: errors have the variance v / (1 + v g), h is half their square times -dg/dw."""
    (alpha, sigma), (d_alpha, d_sigma) = schedule.alpha_sigma(w), schedule.rates(w)
    slope = 2 * alpha * (alpha * d_sigma - d_alpha * sigma) / sigma**3
    errors = VARIANCE / (1 + VARIANCE * ((alpha / sigma) ** 2)[..., None])
    return slope / 2 * (errors.sum(-1) ** 2 + 2 * errors.square().sum(-1)).sqrt()


def integral(f, ends, n=64):
    """Of f over each of the stretches between `ends` (K + 1,): (K,), by the midpoint rule."""
    inside = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = ends[:-1, None] + ends.diff()[:, None] * inside
    return f(x).mean(1) * ends.diff()


@pytest.mark.parametrize("schedule", [sch.Cosine(), sch.VE(0.01, 20.0)], ids=lambda s: s.kind)
def test_it_is_optimal_importance_sampling(schedule):
    denoiser = GAUSSIAN.denoiser(Corruption(schedule))
    learned = fit_schedule(denoiser, GAUSSIAN.draw(5000), pieces=24, batch=256)
    first = 1 if schedule.alpha_sigma(0.0)[1] == 0 else 0
    ends = torch.tensor(learned.places[first:], dtype=torch.float64)
    chances = torch.tensor(learned.times[first:], dtype=torch.float64).diff()
    chances = chances / chances.sum()
    squares = ends.diff() * integral(lambda w: root_mean_square(schedule, w) ** 2, ends)
    best = squares.sqrt() / squares.sqrt().sum()
    torch.testing.assert_close(chances, best, rtol=0.1, atol=0)
    assert best.max() > 1.5 * best.min()

    def mean_square(p):
        return float((squares / p).sum())

    # pieces of constant density lose little to the best density of all, and the fit little to the best pieces
    floor = float(integral(lambda w: root_mean_square(schedule, w), ends).sum()) ** 2
    assert floor < mean_square(best) < 1.05 * floor
    assert mean_square(best) <= mean_square(chances) < 1.002 * mean_square(best)


def test_it_is_the_schedule_that_a_training_on_the_bound_wants():
    """With uniform times on it, the loss of the weight `Bound` scatters as little as it can: cosine's, much more."""
    x0, noise = GAUSSIAN.draw(20_000), Noise.of(3, 20_000)
    learned = fit_schedule(GAUSSIAN.denoiser(Corruption(sch.Cosine())), x0[:5000], first=0.01, pieces=24)
    spread, total = [], []
    for schedule in (sch.Cosine(), learned):
        denoiser = GAUSSIAN.denoiser(Corruption(schedule))
        low = float(schedule.time(sch.Cosine().logsnr(0.01)))
        t = low + (1 - low) * noise.at("time").uniform(torch.zeros(20_000, dtype=torch.float64))
        weight = lambda t, s=schedule: Bound()(s, tgt.X0(), t)  # noqa: E731
        loss = 3 * (1 - low) * denoising(denoiser, x0, t, noise, weight=weight)
        spread.append(float(loss.std()))
        total.append(float(loss.mean()))
    snr = float(sch.Cosine().logsnr(0.01).exp())
    exact = float((VARIANCE * snr).log1p().sum() / 2)
    assert total[1] == pytest.approx(exact, abs=4 * spread[1] / 20_000**0.5)
    best = float(integral(lambda w: root_mean_square(sch.Cosine(), w), torch.linspace(0.01, 1, 500).double()).sum())
    assert spread[1] == pytest.approx((best**2 - exact**2) ** 0.5, rel=0.05)
    assert spread[0] > 2 * spread[1]


def test_a_fit_is_repeatable_is_kept_in_a_config_and_leaves_the_network_alone():
    torch.manual_seed(0)
    net = MLP(3, width=8, blocks=1, classes=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    network = Network(net, Corruption(sch.VP()), tgt.EDM_F(0.5), (3,))
    before = [p.clone() for p in network.parameters()]
    x0, cond, seen = GAUSSIAN.draw(50).float(), {"label": torch.arange(50) % 2}, []
    fits = [
        fit_schedule(network, x0, cond=cond, pieces=4, steps=5, on_step=lambda *done: seen.append(done))
        for _ in range(2)
    ]
    assert fits[0] == fits[1] and seen[:5] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert from_config(to_config(fits[0])) == fits[0]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, network.parameters(), strict=True))
    assert fit_schedule(network, x0, pieces=4, steps=5) != fits[0]  # the labels were followed
    # the ends are the old schedule's own
    for t in (0.0, 1.0):
        assert fits[0].alpha_sigma(t) == sch.VP().alpha_sigma(t)


def test_samplers_run_on_it_and_find_the_same_noise_levels():
    learned = fit_schedule(GAUSSIAN.denoiser(Corruption(sch.Cosine())), GAUSSIAN.draw(100), steps=10)
    samples = [sample(GAUSSIAN.denoiser(Corruption(s)), shape=(4, 3), steps=8) for s in (sch.Cosine(), learned)]
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-6, atol=1e-6)


def test_mistakes_are_one_sentence():
    denoiser, x0 = GAUSSIAN.denoiser(Corruption(sch.Cosine())), GAUSSIAN.draw(10)
    for call, words in (
        (lambda: fit_schedule(denoiser, x0[:, :2]), "knows events"),
        (lambda: fit_schedule(denoiser, x0[:0]), "the data are"),
        (lambda: fit_schedule(denoiser, x0, pieces=1), "at least 2 pieces"),
        (lambda: fit_schedule(denoiser, x0, rate=1.0), "rate"),
        (lambda: fit_schedule(denoiser, x0, first=0.0), "have noise"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    with pytest.raises(UserError, match="not finite"):
        fit_schedule(denoiser, x0 * math.nan, pieces=4, steps=4)
    denoiser.process = Masking(3)
    with pytest.raises(UserError, match="Gaussian process"):
        fit_schedule(denoiser, x0)
