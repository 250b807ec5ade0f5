"""Measures of following, counted by hand."""

import pytest
import torch

from backdrift.data.derived import Edges, KnownPixels, LowResolution, Segmentation
from backdrift.errors import UserError
from backdrift.evaluate.following import f1, following, mean_and_half, mean_iou


def test_f1_and_mean_iou_by_hand():
    a = torch.tensor([[1.0, 1, -1, -1], [-1, -1, -1, -1], [1, -1, -1, -1]])
    b = torch.tensor([[1.0, -1, 1, 1], [-1, -1, -1, -1], [-1, -1, -1, -1]])
    torch.testing.assert_close(f1(a, b), torch.tensor([2 / 5, 1.0, 0.0]))
    # values 1: 1 of 4, -1: 0 of 3; value -1 alone: 4 of 4; value 1: 0 of 1 and -1: 3 of 4
    torch.testing.assert_close(mean_iou(a, b), torch.tensor([(1 / 4 + 0) / 2, 1.0, (0 + 3 / 4) / 2]))


def test_pictures_follow_their_own_conditions_exactly_and_others_less():
    x0 = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for derived, name in ((Edges(), "edges"), (Segmentation(), "segments"), (LowResolution(), "small")):
        given = derived.cond(x0, None)[name]
        assert following(derived, given, x0).eq(1).all()
        assert float(following(derived, given, x0.roll(1, 0)).max()) < 0.9
    with pytest.raises(UserError, match="KnownPixels"):
        following(KnownPixels(), x0, x0)


def test_the_interval_of_a_mean():
    mean, half = mean_and_half(torch.tensor([0.0, 1.0] * 50))
    assert mean == 0.5 and abs(half - 1.96 * (25 / 99) ** 0.5 / 10) < 1e-6
