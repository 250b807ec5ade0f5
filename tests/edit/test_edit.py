"""Editing on Gaussians and mixtures, where the right answer is a closed form."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.edit import Masked, Replacement, placed, recondition, sdedit, soft_edge, time_of, vary
from backdrift.noise import Noise
from backdrift.process import Gaussian

SCHEDULES = [bd.schedule.VP(), bd.schedule.Flow(), bd.schedule.EDM()]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


C = torch.tensor([[0.5, 0.45], [0.45, 0.5]], dtype=torch.float64)
CORRELATED = bd.exact.Gaussian(torch.tensor([0.3, -0.2]).double(), C)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_strength_means_the_same_everywhere(schedule):
    denoiser = CORRELATED.denoiser(Gaussian(schedule))
    scale = math.sqrt(0.5)
    for strength in (0.2, 0.5, 0.8):
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(time_of(denoiser, strength)))
        assert sigma / (alpha * scale + sigma) == pytest.approx(strength, abs=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sdedit_has_the_law_of_the_posterior_given_the_noised_picture(schedule):
    """From clean x0 to t and back through exact posteriors: mean and covariance in closed form for a Gaussian."""
    denoiser, n, strength = CORRELATED.denoiser(Gaussian(schedule)), 6000, 0.5
    x0 = torch.tensor([[1.5, -1.0]]).double().expand(n, 2)
    out = sdedit(denoiser, x0, strength, solver=bd.solvers.DDIM(eta=1.0), steps=60)
    alpha, sigma = (float(v) for v in schedule.alpha_sigma(time_of(denoiser, strength)))
    gain = alpha * C @ torch.linalg.inv(alpha**2 * C + sigma**2 * torch.eye(2).double())
    mean = CORRELATED.means[0] + alpha * gain @ (x0[0] - CORRELATED.means[0])
    cov = C - alpha * gain @ C + sigma**2 * gain @ gain.mT
    torch.testing.assert_close(out.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(out.mT.cov(), cov, atol=0.05, rtol=0)


def test_sdedit_keeps_more_at_smaller_strengths():
    denoiser, x0 = CORRELATED.denoiser(Gaussian(bd.schedule.VP())), random(200, 2)
    moved = [(sdedit(denoiser, x0, s, steps=10) - x0).square().mean() for s in (0.05, 0.3, 0.6, 1.0)]
    assert moved == sorted(moved)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_vary_keeps_the_law_and_correlates_as_it_says(schedule):
    denoiser, n = CORRELATED.denoiser(Gaussian(schedule)), 4000
    x0 = CORRELATED.draw(n, seed=4)
    torch.testing.assert_close(vary(denoiser, x0[:5], 0.0, steps=60), x0[:5], atol=1e-3, rtol=0)
    out = vary(denoiser, x0, 0.5, steps=12)
    torch.testing.assert_close(out.mT.cov(), C, atol=0.05, rtol=0)
    # the flow of a Gaussian is linear, so the correlation is the cosine of the turn, 45 degrees
    both = torch.stack([out[:, 0], x0[:, 0]]).corrcoef()[0, 1]
    assert float(both) == pytest.approx(math.cos(math.pi / 4), abs=0.04)


def test_recondition_maps_one_gaussian_to_another():
    mixture = bd.exact.Mixture(
        torch.ones(2), torch.tensor([[-2.0], [3.0]]).double(), torch.tensor([0.25, 1.0]), labels=torch.tensor([0, 1])
    )
    denoiser, x0 = mixture.denoiser(Gaussian(bd.schedule.Flow())), random(5, 1) * 0.5 - 2
    first, second = {"label": torch.zeros(5).long()}, {"label": torch.ones(5).long()}
    # the flow keeps quantiles: standard deviations from the mean stay what they are
    expected = 3.0 + (x0 + 2) / 0.5
    torch.testing.assert_close(recondition(denoiser, x0, first, second, steps=60), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(recondition(denoiser, x0, first, first, steps=60), x0, atol=1e-3, rtol=0)


def test_replacement_keeps_known_pixels_exactly():
    denoiser = CORRELATED.denoiser(Gaussian(bd.schedule.EDM()))
    known, mask = torch.tensor([[0.123456789, 9.0]]).double(), torch.tensor([[1.0, 0.0]])
    for rounds in (1, 3):
        x = bd.sample(denoiser, shape=(7, 2), solver=Replacement(known, Masked(mask), rounds), steps=12)
        assert bool((x[:, 0] == known[0, 0].to(x)).all())
        assert x[:, 1].std() > 0.01


def inpainted(rounds, steps, n=4000):
    process = Gaussian(bd.schedule.VP())
    known, mask = torch.tensor([[1.2, 0.0]]).double(), torch.tensor([[1.0, 0.0]])
    x1 = process.prior(torch.zeros(n, 2).double(), Noise.of(0, n).at("prior"))
    x = bd.sample(CORRELATED.denoiser(process), x1, solver=Replacement(known, Masked(mask), rounds), steps=steps)
    return float(x[:, 1].mean()), float(x[:, 1].std())


def test_how_far_replacement_is_from_the_posterior():
    """x_2 given x_1 = 1.2 is N(-.2 + .9 (1.2 - .3), .5 - .9 .45): replacement is too broad, RePaint comes nearer."""
    mean, std = -0.2 + 0.9 * 0.9, math.sqrt(0.5 - 0.9 * 0.45)
    plain, again = inpainted(1, 60), inpainted(4, 240)
    print(f"exact {mean:.3f} {std:.3f}, replacement {plain}, RePaint {again}")
    assert abs(plain[0] - mean) > 0.05
    assert abs(again[0] - mean) < abs(plain[0] - mean)
    assert plain[1] > std * 1.05


def test_rounds_count_as_evaluations():
    class Counted(bd.Denoiser):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.process, self.event_shape, self.calls = inner, inner.process, inner.event_shape, 0

        def forward(self, xt, t, cond=None):
            self.calls += 1
            return self.inner(xt, t, cond)

    for rounds, jump in ((1, 1), (3, 1), (2, 3)):
        counted = Counted(CORRELATED.denoiser(Gaussian(bd.schedule.VP())))
        solver = Replacement(torch.zeros(1, 2), Masked(torch.tensor([1.0, 0.0])), rounds, jump)
        bd.sample(counted, shape=(2, 2), solver=solver, steps=12)
        assert counted.calls == 12


def test_a_sample_does_not_depend_on_the_batch():
    denoiser = CORRELATED.denoiser(Gaussian(bd.schedule.VP()))
    solver = Replacement(torch.tensor([[0.5, 0.0]]), Masked(torch.tensor([1.0, 0.0])), 2)
    together = bd.sample(denoiser, index=[0, 1, 2], solver=solver, steps=8)
    torch.testing.assert_close(bd.sample(denoiser, index=[1], solver=solver, steps=8), together[1:2])


def test_outpainting_places_the_picture():
    known, mask = placed(torch.ones(1, 2, 3), (1, 4, 5), 1, 2)
    assert mask.sum() == 6 and mask[0, 0, 1:3, 2:5].all() and (known == mask).all()
    with pytest.raises(UserError, match="does not fit"):
        placed(torch.ones(1, 2, 3), (1, 4, 5), 3, 0)


def test_soft_edge_fades_on_the_known_side():
    mask = torch.ones(1, 7, 9)
    mask[:, :, 4] = 0
    expected = torch.tensor([1.0, 1.0, 2 / 3, 1 / 3, 0.0, 1 / 3, 2 / 3, 1.0, 1.0]).expand(1, 7, 9)
    torch.testing.assert_close(soft_edge(mask, 2), expected)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda d: sdedit(d, torch.zeros(2, 3), 0.5), "of shape \\(2,\\)"),
        (lambda d: sdedit(d, torch.zeros(2, 2), 0.0), "strength"),
        (lambda d: vary(d, torch.zeros(2, 2), 1.5), "share"),
        (lambda d: Masked(torch.tensor([2.0])), "between 0"),
        (lambda d: Replacement(torch.zeros(1, 2), Masked(torch.ones(2)), 0), "at least 1"),
        (lambda d: bd.sample(d, shape=(3, 2), solver=Replacement(torch.zeros(2, 2), Masked(torch.ones(2)))), "for 3"),
        (lambda d: soft_edge(torch.ones(1, 2, 2), 0), "1 pixel"),
    ],
)
def test_mistakes_are_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make(CORRELATED.denoiser(Gaussian(bd.schedule.VP())))
