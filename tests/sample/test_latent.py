"""Latent arithmetic against closed-form flows and plane geometry."""

import math

import pytest
import torch
from cases import GaussianData

import backdrift as bd
from backdrift.exact import Mixture
from backdrift.process import Gaussian
from backdrift.sample.latent import between, carry, invert, path, round_trip, slerp
from backdrift.schedule import EDM, VP, Cosine, Flow

MEAN, STD = 0.3, 0.5
schedules = pytest.mark.parametrize("schedule", [VP(), Cosine(), EDM(), Flow()], ids=lambda s: s.kind)


def exact(schedule, x, t, s):
    """The flow of N(MEAN, STD^2): the standardised state does not move."""
    (a, z), (b, y) = (map(float, schedule.alpha_sigma(v)) for v in (t, s))
    return b * MEAN + math.hypot(b * STD, y) / math.hypot(a * STD, z) * (x - a * MEAN)


@schedules
@pytest.mark.parametrize(("t", "s"), [(0.0, 1.0), (1.0, 0.0), (0.7, 0.2), (0.2, 0.7), (0.4, 0.4)])
def test_carry_is_the_exact_flow_of_gaussian_data(schedule, t, s):
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * float(schedule.alpha_sigma(t)[1] + 0.5)
    moved = carry(GaussianData(schedule, MEAN, STD**2), x, t, s)
    want = exact(schedule, x, t, s)
    assert torch.allclose(moved, want, rtol=2e-4, atol=2e-4 * float(want.abs().max()))


def test_carry_resolves_one_direction_far_wider_than_the_rest():
    """As in pictures: the first component has nearly all variance, and turns at a noise 16 times a coordinate's."""
    variance = torch.full((256,), 0.05**2, dtype=torch.float64)
    variance[0] = 64.0
    denoiser = GaussianData(Flow(), 0.0, variance, (256,))
    x1 = torch.randn(4, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = carry(denoiser, x1, 1.0, 0.0)
    assert float((out / (x1 * variance.sqrt()) - 1).abs().max()) < 2e-3


@schedules
def test_round_trip_on_a_mixture(schedule):
    data = Mixture(torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64), 0.04)
    denoiser, x0 = data.denoiser(Gaussian(schedule)), data.draw(32)
    coarse, fine = (round_trip(denoiser, x0, steps=n) for n in (8, 32))
    assert float(fine.error.max()) < 1e-2 and float(fine.error.median()) < 3e-5
    assert float(coarse.error.median()) > 4 * float(fine.error.median())
    assert torch.allclose(fine.error, (fine.back - x0).square().mean(1).sqrt())
    alpha, sigma = (v.expand(32) for v in schedule.alpha_sigma(1.0))
    zero = torch.zeros(32, dtype=torch.float64)
    want = data.flow(x0, (zero + float(schedule.alpha_sigma(0.0)[0]), zero + float(schedule.alpha_sigma(0.0)[1])),
                     (alpha, sigma), None, 200)  # fmt: skip
    assert torch.allclose(fine.noise, want, rtol=1e-2, atol=1e-2)


def test_slerp_turns_at_constant_speed():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    for share in (0.0, 0.25, 0.5, 1.0):
        angle, size = share * math.pi / 2, 2 + 2 * share
        want = torch.tensor([[size * math.cos(angle), size * math.sin(angle)]])
        assert torch.allclose(slerp(a, b, share), want, atol=1e-6)
    assert torch.allclose(slerp(a, 3 * a, 0.5), 2 * a)  # one direction: a straight line


def test_between_two_pictures_starts_and_ends_there():
    denoiser = GaussianData(VP(), 0.0, 0.25, (3,))
    a, b = torch.tensor([[0.5, 0.0, 0.0]]).double(), torch.tensor([[0.0, 0.5, 0.0]]).double()
    way = between(denoiser, a, b, 3)
    assert way.shape == (3, 1, 3)
    assert torch.allclose(way[0], a, atol=1e-4) and torch.allclose(way[2], b, atol=1e-4)
    # centred Gaussian data: the flow is a multiplication, so the middle lies on the same circle
    assert torch.allclose(way[1], torch.tensor([[1.0, 1.0, 0.0]]).double() / math.sqrt(8), atol=1e-4)


def test_path_keeps_every_state_and_mean():
    denoiser, x1 = GaussianData(Flow(), MEAN, STD**2), torch.randn(4, 1, dtype=torch.float64)
    way = path(denoiser, x1, steps=6)
    assert way.states.shape == (7, 4, 1) and way.means.shape == (6, 4, 1) and way.times.shape == (7,)
    assert torch.equal(way.states[0], x1) and torch.equal(way.states[-1], bd.sample(denoiser, x1, steps=6))
    assert torch.allclose(way.means[2], denoiser(way.states[2], way.times[2]).mean)
    assert torch.allclose(way.states[-1], exact(Flow(), x1, 1.0, 0.0), atol=0.03)


def test_bad_input():
    denoiser, x = GaussianData(VP()), torch.zeros(1, 1)
    for wrong in (lambda: carry(denoiser, x, 0.0, 1.5), lambda: invert(denoiser, x, steps=0),
                  lambda: between(denoiser, x, x, 1)):  # fmt: skip
        with pytest.raises(bd.UserError):
            wrong()
