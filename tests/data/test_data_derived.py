"""Conditions made from pictures, against what they are on pictures drawn by hand; and their place in the stream."""

from dataclasses import replace

import pytest
import torch

from backdrift.config import from_config, to_config
from backdrift.data import digits
from backdrift.data.derived import Edges, KnownPixels, LowResolution, Segmentation, channels, derive, slope
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.train import stream
from backdrift.train.options import TrainOptions, for_pictures

CPU = torch.device("cpu")


def test_a_plane_has_its_slope_and_a_step_has_two_edges():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    plane = (0.03 * x - 0.04 * y)[None, None].repeat(1, 3, 1, 1)
    torch.testing.assert_close(slope(plane)[..., 1:-1, 1:-1], torch.full((1, 1, 4, 5), 0.05))
    step = torch.where(x < 3, -1.0, 1.0)[None, None]
    made = Edges().cond(step, Noise.of(0, 1))["edges"]
    assert made[0, 0].eq(torch.where((x == 2) | (x == 3), 1.0, -1.0)).all()
    torch.testing.assert_close(slope(step)[0, 0, :, 2], torch.ones(6))


def test_regions_are_bands_of_brightness():
    x = torch.tensor([-1.0, -0.4, -0.3, 0.3, 0.4, 1.0]).view(1, 1, 1, 6)
    how = Segmentation(regions=3)
    assert how.number(x).flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert how.cond(x, Noise.of(0, 1))["segments"].flatten().tolist() == [-1, -1, 0, 0, 1, 1]
    assert Segmentation(regions=2, blur=1).number(x).flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_a_small_copy_averages():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    small = LowResolution().cond(x, Noise.of(0, 1))["small"]
    assert small[0, 0, ::2, ::2].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert small[0, 0, 0, 0] == small[0, 0, 1, 1] and small.shape == x.shape
    with pytest.raises(UserError, match="4 x 6"):
        LowResolution(3).cond(torch.zeros(1, 1, 4, 6), Noise.of(0, 1))


def test_masks_are_rectangles_and_scattered_pixels_in_equal_parts():
    x0 = torch.ones(3000, 2, 6, 5)
    made = KnownPixels().cond(x0, Noise.of(0, 3000))
    mask = made["mask"]
    assert mask.shape == (3000, 1, 6, 5) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert made["known"].equal(x0 * mask)

    def rectangle(m):
        rows, columns = m.any(1), m.any(0)
        return bool(m.any()) and m.sum() == rows.sum() * columns.sum() == int(m[rows][:, columns].sum())

    alone = sum(rectangle(m) for m in mask[:, 0].bool())
    missing = sum(rectangle(~m) for m in mask[:, 0].bool())
    # a third each, and a few scattered or complementary ones that happen to be rectangles
    assert 900 < alone < 1450 and 900 < missing < 1450
    # known by a half in the mean: complementary rectangles, and a density that is uniform
    assert abs(float(mask.mean()) - 0.5) < 0.03
    # every place alike, up to the middle's better chance of lying inside a rectangle, which its complement undoes
    assert float((mask.mean((0, 1)) - 0.5).abs().max()) < 0.05


def test_conditions_hang_on_the_sample_alone_and_zeros_hide_them():
    x0 = digits().tensor(torch.arange(200))
    every = (Edges(dropout=0.25), KnownPixels())
    whole = derive(every, x0, Noise.of(3, 200), hide=True)
    part = derive(every, x0[50:60], Noise(3, torch.arange(50, 60)), hide=True)
    assert all(whole[name][50:60].equal(part[name]) for name in part)
    hidden = whole["edges"].flatten(1).eq(0).all(1)
    assert 30 < int(hidden.sum()) < 70 and whole["edges"][~hidden].abs().eq(1).all()
    assert derive(every, x0, Noise.of(3, 200))["edges"].abs().eq(1).all()
    assert channels(every, (3, 8, 8)) == {"edges": 1, "known": 3, "mask": 1}


def test_a_training_shows_the_edges_of_the_very_picture_that_it_shows():
    pictures = digits()
    options = replace(for_pictures(pictures), derived=(Edges(dropout=0.5), Segmentation()), flip=True)
    drawn = stream.draw(pictures, options, torch.arange(64), CPU)
    own = Edges().cond(drawn.x0, Noise.of(0, 64))["edges"]
    shown = drawn.cond["edges"].flatten(1).ne(0).any(1)
    assert drawn.cond["edges"][shown].equal(own[shown]) and 15 < int(shown.sum()) < 49
    assert {"label", "segments"} <= drawn.cond.keys()
    kept = stream.held_out(pictures, options, torch.arange(64), CPU)
    assert kept.cond["edges"].equal(Edges().cond(kept.x0, Noise.of(0, 64))["edges"])


def test_they_are_part_of_a_runs_config():
    options = TrainOptions(derived=(Edges(0.2, dropout=0.1), KnownPixels(), Segmentation(regions=4), LowResolution()))
    assert from_config(to_config(options)) == options
    with pytest.raises(UserError, match="once"):
        TrainOptions(derived=(Edges(), Edges(0.5)))
    with pytest.raises(UserError, match="share"):
        Edges(dropout=1.5)
