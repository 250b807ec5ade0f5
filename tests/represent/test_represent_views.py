"""The changes that make views of a picture: each against its definition, keyed by sample, in range."""

import math

import pytest
import torch

import backdrift as bd
from backdrift.noise import Noise
from backdrift.represent.augment import draws, view

CHANGES = (
    bd.represent.Move(0.4, 0.3, 20.0),
    bd.represent.Mirror(),
    bd.represent.Jitter(),
    bd.represent.Blur(),
    bd.represent.Grain(),
)


def pictures(count=6, shape=(3, 12, 10)):
    return 2 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.kind)
def test_a_view_depends_on_its_own_sample_alone_and_stays_in_range(change):
    x, noise = pictures(), Noise.of(3, 6)
    made = change(x, noise)
    assert made.shape == x.shape and made.min() >= -1 and made.max() <= 1 and not torch.equal(made, x)
    order = torch.tensor([4, 1, 5])
    torch.testing.assert_close(change(x[order], Noise(3, order)), made[order])
    assert not torch.equal(change(x, Noise.of(4, 6)), made)


def test_moving_by_nothing_is_nothing():
    x = pictures(shape=(1, 9, 9))
    torch.testing.assert_close(bd.represent.Move(1.0)(x, Noise.of(0, 6)), x)


@pytest.mark.parametrize(("height", "width"), [(33, 33), (33, 49), (49, 33)])
def test_a_turn_is_a_turn(height, width):
    # a bright point ten pixels to the right of the middle, turned by the angle that the draws say: where its weight is
    noise, middle = Noise.of(1, 6), ((height - 1) // 2, (width - 1) // 2)
    point = -torch.ones(6, 1, height, width)
    point[:, :, middle[0], middle[1] + 10] = 1
    made = (bd.represent.Move(1.0, 0.0, 90.0)(point, noise) + 1) / 2
    whole = made.sum((1, 2, 3))
    across = (made.sum((1, 2)) * (torch.arange(width) - middle[1])).sum(1) / whole
    down = (made.sum((1, 3)) * (torch.arange(height) - middle[0])).sum(1) / whole
    angle = draws(point, noise, 4)[:, 3] * math.pi / 2
    # a view looks where the turned grid points, so what it shows is turned the other way
    torch.testing.assert_close(across, 10 * angle.cos(), atol=0.3, rtol=0)
    torch.testing.assert_close(down, -10 * angle.sin(), atol=0.3, rtol=0)


def test_a_cut_is_enlarged_and_a_shift_shifts():
    ramp = torch.linspace(-0.9, 0.9, 64).expand(64, 1, 64, 64)
    noise = Noise.of(2, 64)
    made = bd.represent.Move(0.5)(ramp, noise)
    slope = made[:, 0, 0, 40] - made[:, 0, 0, 20]
    share = slope / (ramp[:, 0, 0, 40] - ramp[:, 0, 0, 20])
    assert share.min() > 0.5 and share.max() < 1 and abs(share.mean() - 0.75) < 0.05
    assert made.min() >= -0.9 and made.max() <= 0.9  # nothing from outside


def test_blur_keeps_the_mean_of_a_flat_picture_and_grain_has_the_std_it_says():
    flat = torch.full((500, 1, 16, 16), 0.2)
    torch.testing.assert_close(bd.represent.Blur()(flat, Noise.of(0, 500)), flat)
    spread = (bd.represent.Grain(0.2)(flat, Noise.of(0, 500)) - flat).flatten(1).std(1)
    assert abs(spread.mean() - 0.1) < 0.01 and spread.max() < 0.23
    point = torch.zeros(500, 1, 5, 5)
    point[:, 0, 2, 2] = 1
    blurred = bd.represent.Blur()(point, Noise.of(0, 500))
    way = (1 - blurred[:, 0, 2, 2]) / (1 - 4 / 16)
    assert way.min() > 0 and way.max() < 1 and abs(way.mean() - 0.5) < 0.05
    torch.testing.assert_close(blurred[:, 0, 1, 2], way * 2 / 16)


def test_grey_pictures_have_equal_channels_and_jitter_of_nothing_is_nothing():
    x = pictures(200) * 0.5
    grey = bd.represent.Jitter(0, 0, 0, 0.3)(x, Noise.of(0, 200))
    equal = (grey == grey[:, :1]).flatten(1).all(1)
    assert abs(equal.float().mean() - 0.3) < 0.1
    torch.testing.assert_close(grey[equal][:, 0], x[equal].mean(1))
    torch.testing.assert_close(bd.represent.Jitter(0, 0, 0, 0)(x, Noise.of(0, 200)), x)


def test_changes_follow_each_other_with_noise_of_their_own():
    x, noise = pictures(), Noise.of(0, 6)
    twice = view(x, (bd.represent.Grain(), bd.represent.Grain()), noise)
    first = bd.represent.Grain()(x, noise.at(0))
    torch.testing.assert_close(twice, bd.represent.Grain()(first, noise.at(1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: bd.represent.Move(0.0),
        lambda: bd.represent.Move(1.0, -1.0),
        lambda: bd.represent.Jitter(brightness=2.0),
        lambda: bd.represent.Blur(1.5),
        lambda: bd.represent.Grain(-0.1),
    ],
)
def test_changes_that_make_no_sense_are_refused(make):
    with pytest.raises(bd.UserError):
        make()
