"""Back through the noise: orders of convergence, partial re-noising and ways between conditions, by closed forms."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.edit import (
    Masked,
    Replacement,
    between_conditions,
    blend,
    invert,
    recondition,
    round_trip,
    sdedit,
    time_of,
    vary,
)
from backdrift.process import Gaussian

SCHEDULES = [bd.schedule.VP(), bd.schedule.Flow(), bd.schedule.EDM()]
MIXTURE = bd.exact.Mixture(
    torch.tensor([0.6, 0.4]).double(),
    torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64),
    torch.tensor([0.25, 0.16], dtype=torch.float64),
)
C = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
CORRELATED = bd.exact.Gaussian(torch.tensor([0.3, -0.2]).double(), C)


def slope(errors, counts):
    """The order: minus the slope of log error against log steps, between the ends."""
    return math.log(errors[0] / errors[-1]) / math.log(counts[-1] / counts[0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_there_and_back_is_of_fourth_order(schedule):
    denoiser, x0 = MIXTURE.denoiser(Gaussian(schedule)), MIXTURE.draw(64, seed=1)
    counts = (6, 12, 24)
    errors = [float(round_trip(denoiser, x0, steps=n).error.square().mean().sqrt()) for n in counts]
    assert 3.7 < slope(errors, counts) < 5.6 and errors[-1] < 1e-5, errors


@pytest.mark.parametrize(("solver", "order"), [(bd.solvers.DDIM(), 1), (bd.solvers.Heun(), 2)])
def test_inversion_then_sampling_returns_the_picture_within_the_solvers_order(solver, order):
    """The noise by a fine inversion, then the solver in n steps: its error falls as n to the minus its order."""
    denoiser, x0 = MIXTURE.denoiser(Gaussian(bd.schedule.VP())), MIXTURE.draw(64, seed=1)
    noise = invert(denoiser, x0, steps=150)
    counts = (32, 64, 128)
    back = [bd.sample(denoiser, noise, solver=solver, steps=n, grid=bd.grids.Angle()) for n in counts]
    errors = [float((x - x0).square().mean().sqrt()) for x in back]
    assert order - 0.35 < slope(errors, counts) < order + 0.7, errors


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("share", "strength"), [(0.5, 0.6), (0.3, 0.3), (1.0, 0.5)])
def test_partial_renoising_keeps_the_law_and_correlates_as_it_says(schedule, share, strength):
    """The flow of a Gaussian keeps each principal direction's standardised value; noise turns it by a known cosine."""
    denoiser, n = CORRELATED.denoiser(Gaussian(schedule)), 4000
    x0 = CORRELATED.draw(n, seed=4)
    out = vary(denoiser, x0, share, strength=strength, steps=14)
    torch.testing.assert_close(out.mean(0), CORRELATED.means[0], atol=0.05, rtol=0)
    torch.testing.assert_close(out.mT.cov(), C, atol=0.05, rtol=0)
    alpha, sigma = (float(v) for v in schedule.alpha_sigma(time_of(denoiser, strength)))
    ratio = sigma / alpha
    low = math.cos(share * math.pi / 2) * ratio
    values, basis = torch.linalg.eigh(C)
    z, z_out = ((x - CORRELATED.means[0]) @ basis for x in (x0, out))
    for i in range(2):
        # z_low has variance v + low^2 over the signal's, and the state at the top v + ratio^2 for the same signal
        expected = math.sqrt((float(values[i]) + low**2) / (float(values[i]) + ratio**2))
        found = torch.stack([z[:, i], z_out[:, i]]).corrcoef()[0, 1]
        assert float(found) == pytest.approx(expected, abs=0.04)


def test_partial_renoising_between_nothing_and_a_new_version():
    denoiser, x0 = CORRELATED.denoiser(Gaussian(bd.schedule.VP())), CORRELATED.draw(2000, seed=4)
    torch.testing.assert_close(vary(denoiser, x0[:5], 0.0, strength=0.5, steps=60), x0[:5], atol=1e-3, rtol=0)
    fresh = vary(denoiser, x0, 1.0, strength=0.5, steps=14)
    again = sdedit(denoiser, x0, 0.5, steps=20)
    both = [torch.stack([x[:, 0], x0[:, 0]]).corrcoef()[0, 1] for x in (fresh, again)]
    assert float(both[0]) == pytest.approx(float(both[1]), abs=0.04)


def test_way_between_conditions_moves_the_mean_and_keeps_the_rest():
    means = torch.tensor([[-2.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    labelled = bd.exact.Mixture(torch.ones(2), means, 0.25, labels=torch.tensor([0, 1]))
    denoiser = labelled.denoiser(Gaussian(bd.schedule.Flow()))
    x0 = means[:1] + 0.5 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, after = {"label": torch.zeros(5).long()}, {"label": torch.ones(5).long()}
    way = between_conditions(denoiser, x0, before, after, 3, steps=60)
    # both laws have one covariance, so the belief in between is that of the law half of the way
    for k, share in enumerate((0.0, 0.5, 1.0)):
        torch.testing.assert_close(way[k], x0 + share * (means[1] - means[0]), atol=2e-3, rtol=0)
    torch.testing.assert_close(way[2], recondition(denoiser, x0, before, after, steps=60))


def test_mistakes_are_one_sentence():
    denoiser = CORRELATED.denoiser(Gaussian(bd.schedule.VP()))
    x = torch.zeros(3, 2).double()
    with pytest.raises(UserError, match="at least 2 pictures"):
        between_conditions(denoiser, x, {}, {}, 1)
    with pytest.raises(UserError, match="strength lies"):
        vary(denoiser, x, 0.5, strength=0.0)
    pictures = torch.zeros(2, 1, 4, 5)
    for mask in (torch.ones(1, 4, 4), torch.ones(3, 1, 4, 5), torch.ones(2, 1, 5, 4)):
        with pytest.raises(UserError, match="make them of one size"):
            blend(pictures, pictures, mask)
    with pytest.raises(UserError, match="The mask is 3 and the pictures are 2"):
        bd.sample(denoiser, shape=(3, 2), solver=Replacement(torch.zeros(1, 2), Masked(torch.ones(3))))


@pytest.mark.parametrize("rounds", [1, 4])
def test_how_far_replacement_is_from_the_posterior_on_atoms(rounds):
    """Four atoms have the known number, with shares .1, .2, .1, .6; replacement misses them, RePaint less so."""
    places = torch.tensor([-0.9, -0.3, 0.3, 0.9]).double()
    points = torch.cartesian_prod(torch.tensor([-0.8, 0.8]).double(), places)
    shares = torch.tensor([0.05, 0.25, 0.15, 0.05, 0.05, 0.10, 0.05, 0.30]).double()
    denoiser = bd.exact.Atoms(points, shares).denoiser(Gaussian(bd.schedule.VP()))
    n, solver = (
        2000,
        Replacement(torch.tensor([[0.8, 0.0]]).double(), Masked(torch.tensor([1.0, 0.0]).double()), rounds),
    )
    x = bd.sample(denoiser, shape=(n, 2), solver=solver, steps=20 * rounds).double()
    assert bool((x[:, 0] == torch.tensor(0.8).float()).all())
    found = torch.bincount((x[:, 1:] - places).abs().argmin(1), minlength=4) / n
    gap = float((found - torch.tensor([0.1, 0.2, 0.1, 0.6])).abs().sum() / 2)
    # 2000 exact draws are off by .013 on average, and by .03 in one of a hundred cases
    assert (0.06 < gap < 0.13) if rounds == 1 else gap < 0.05, gap
