"""Directions against closed forms: principal axes, regressions, a Gaussian's posterior covariance, arcs and lengths."""

import math

import pytest
import torch

import backdrift as bd
from backdrift.represent import arc, effects, open_directions, path_length, principal, squared_in, unit, walk


def turned(size, seed=0):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed))).Q


def test_principal_directions_are_those_that_were_put_in():
    turn, spread = turned(4), torch.tensor([3.0, 2.0, 1.0, 0.5])
    raw = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    raw = (raw - raw.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(raw.T.cov())).T  # covariance exactly 1
    found = principal((raw * spread) @ turn.T + 5, 3)
    torch.testing.assert_close((found.axes @ turn).abs(), torch.eye(4)[:3], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.spread, spread[:3], rtol=1e-4, atol=0)
    torch.testing.assert_close(found.share, spread[:3] ** 2 / (spread**2).sum(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.centre, torch.full((4,), 5.0), atol=1e-4, rtol=0)
    with pytest.raises(bd.UserError, match="no 5 directions"):
        principal(raw, 5)


def test_effects_hold_the_other_attributes():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(400, generator=generator)
    second = 3 * (0.8 * first + 0.6 * torch.randn(400, generator=generator))  # correlated, on another scale
    attributes = torch.stack([first, second], 1)
    directions = torch.tensor([[1.0, 0, 2], [0, -1, 1]])
    representations = attributes @ directions + 7
    found = effects(representations, attributes)
    torch.testing.assert_close(found, directions * attributes.std(0)[:, None], rtol=1e-4, atol=1e-4)
    with pytest.raises(bd.UserError, match="no direction"):
        effects(representations, torch.ones(400, 1))


def test_the_effect_of_two_values_is_the_difference_of_the_means():
    generator = torch.Generator().manual_seed(0)
    has = (torch.rand(300, 1, generator=generator) < 0.3).float()
    representations = torch.randn(300, 5, generator=generator) + has * torch.arange(5.0)
    gap = representations[has[:, 0] == 1].mean(0) - representations[has[:, 0] == 0].mean(0)
    torch.testing.assert_close(effects(representations, has)[0] / has.std(), gap, rtol=1e-4, atol=1e-5)


def test_open_directions_are_the_posterior_covariance_of_a_gaussian():
    turn, spread = turned(6, 3).double(), torch.tensor([2.0, 1.0, 0.6, 0.4, 0.2, 0.1]).double()
    cov = turn @ torch.diag(spread**2) @ turn.T
    process = bd.process.Gaussian(bd.schedule.VP())
    denoiser = bd.exact.Gaussian(torch.zeros(6).double(), cov).denoiser(process)
    t = 0.4
    alpha, sigma = (float(v) for v in process.schedule.alpha_sigma(t))
    axes, std = open_directions(denoiser, torch.randn(1, 6, dtype=torch.float64), t, 3, rounds=60)
    left = spread**2 * sigma**2 / (alpha**2 * spread**2 + sigma**2)  # Cov[x_0 | x_t] along each axis
    torch.testing.assert_close(std, left[:3].sqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close((axes @ turn).abs(), torch.eye(6).double()[:3], atol=1e-4, rtol=0)
    for wrong in (0.0,):
        with pytest.raises(bd.UserError, match="choose one between"):
            open_directions(denoiser, torch.zeros(1, 6).double(), wrong)


def test_an_arc_has_constant_speed_and_ends_where_it_should():
    a, b = (unit(torch.randn(5, 7, dtype=torch.float64)) for _ in range(2))
    torch.testing.assert_close(arc(a, b, 0.0), a)
    torch.testing.assert_close(arc(a, b, 1.0), b)
    angle = (a * b).mean(1).acos()
    for share in (0.25, 0.7):
        here = arc(a, b, torch.full((5,), share))
        torch.testing.assert_close(here.square().mean(1), torch.ones(5).double())
        torch.testing.assert_close((a * here).mean(1).acos(), share * angle)
    torch.testing.assert_close(arc(a, a, 0.3), a)
    torch.testing.assert_close(arc(3 * a, b / 9, 0.5), arc(a, b, 0.5))


def test_the_path_length_of_a_linear_map_is_that_of_the_arc():
    a, b = (unit(torch.randn(200, 6, dtype=torch.float64)) for _ in range(2))
    turn = turned(6, 4).double()
    found = path_length(lambda r: 2 * r @ turn, a, b, squared_in(lambda x: x), step=1e-4)
    # a speed of `angle` on the sphere of mean square 1, twice as fast after the map
    torch.testing.assert_close(found, 4 * (a * b).mean(1).acos().square(), rtol=1e-4, atol=0)


class Drawn:
    """Stands for a model: pictures that are the representation itself plus the noise of their number."""

    def sample(self, *, index, cond, seed, steps):
        return cond["representation"].view(len(index), 1, 2, 2) + 100 * torch.tensor(index).view(-1, 1, 1, 1)


def test_a_walk_keeps_the_noise_of_each_picture():
    start, direction = torch.arange(8.0).view(2, 4), torch.tensor([1.0, 0, 0, 0])
    made = walk(Drawn(), start, direction, [-1.0, 0.0, 2.0])
    assert made.shape == (2, 3, 1, 2, 2)
    torch.testing.assert_close(made[1, 2].flatten(), start[1] + 2 * direction + 100)
    torch.testing.assert_close(made[0, 0].flatten(), start[0] - direction)
    assert math.isclose(float(made[1, 1].flatten()[3]), 107.0)
