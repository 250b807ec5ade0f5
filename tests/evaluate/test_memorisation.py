"""Memorisation: planted copies are caught, honest draws are not, distances are exact."""

import math

import torch

from backdrift.evaluate.memorisation import memorisation, nearest


def draws(n, seed):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 0.3


def test_nearest_is_exact_even_far_from_the_origin():
    points, queries = draws(700, 0) + 50, draws(90, 1) + 50
    queries[0] = points[13]
    expected = torch.cdist(
        queries.flatten(1).double(), points.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    for block in (50, 4096):
        distance, index = nearest(queries, points, block=block)
        torch.testing.assert_close(distance, expected.min(1).values / 4, rtol=1e-12, atol=0)
        assert torch.equal(index, expected.argmin(1))
    assert distance[0] == 0 and index[0] == 13


def test_honest_draws_are_not_memorised():
    found = memorisation(draws(400, 0), draws(600, 1), draws(200, 2))
    assert not found.memorised and found.low < 1 < found.high and found.high - found.low < 0.2
    assert found.copies == 0 and found.line().startswith("Not memorised")


def test_noisy_copies_are_memorised():
    train = draws(600, 1)
    noisy = train[:400] + 0.05 * draws(400, 0) / 0.3
    found = memorisation(noisy, train, draws(200, 2))
    assert found.memorised and found.high < 0.9 and found.copies == 0
    assert found.line().startswith("MEMORISED")


def test_a_few_exact_copies_are_counted_and_shown_first():
    train, samples = draws(600, 1), draws(400, 0)
    samples[40:60] = train[100:120] + 0.4 / 255  # rounds to the same 8-bit picture
    found = memorisation(samples, train, draws(200, 2), pairs=25)
    assert not found.memorised
    assert found.copies == 20 and found.heldout_copies == 0
    assert {(i, j) for i, j, _ in found.pairs[:20]} == {(40 + i, 100 + i) for i in range(20)}
    assert found.pairs[19][2] < 0.01 < found.pairs[20][2]
    assert "20 of 400 samples" in found.line()


def test_data_that_repeat_themselves_leave_it_undecided():
    train = draws(100, 1)
    found = memorisation(draws(50, 0), train, train[:30])
    assert math.isnan(found.ratio) and not found.memorised and found.heldout_copies == 30
    assert "undecided" in found.line()
