"""The driver: figure and floor are computed alike, and the table says what it must."""

import json
import math

import pytest
import torch

from backdrift.errors import UserError
from backdrift.evaluate import Pixels, evaluate, evaluate_two
from backdrift.evaluate.distances import frechet

FD = "FD (pixels)"


def draws(n, seed, shift=0.0):
    return torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed)) * 0.4 + shift


def test_the_training_set_itself_sits_exactly_at_the_floor():
    train, heldout = draws(90, 0), draws(40, 1)
    found = evaluate(train, train, heldout, features=[Pixels()])
    for row in found.rows:
        assert row.value == pytest.approx(row.floor, abs=1e-12)
        assert (row.n, row.reference) == (90, 40)
    assert found.row(FD).value == pytest.approx(frechet(train.flatten(1), heldout.flatten(1)), rel=1e-12)
    assert found.memorisation.copies == 90 and found.lines()[0].startswith("MEMORISED")


def test_honest_draws_are_near_the_floor_and_shifted_ones_are_not():
    train, heldout = draws(400, 0), draws(150, 1)
    honest = evaluate(draws(200, 2), train, heldout, features=[Pixels()])
    shifted = evaluate(draws(200, 2, shift=0.5), train, heldout, features=[Pixels()])
    for row in honest.rows:
        assert row.low <= row.value <= row.high
        assert row.low <= row.floor + (row.high - row.low) and row.floor - (row.high - row.low) <= row.high
    for row in shifted.rows:
        worse = row.low > 1.5 * row.floor if row.better == "lower" else row.high < 0.95 * row.floor
        assert worse, row


def test_more_samples_than_training_pictures_are_cut_to_the_same_n():
    found = evaluate(draws(120, 2), draws(70, 0), draws(40, 1), features=[Pixels()], splits=1)
    assert {row.n for row in found.rows} == {70}


def test_two_sets_use_disjoint_parts_of_the_real_one():
    samples, real = draws(100, 1), draws(90, 0)
    found = evaluate_two(samples, real, features=[Pixels()], splits=1, seed=5)
    assert {(row.n, row.reference) for row in found.rows} == {(60, 30)} and found.memorisation is None
    order = torch.randperm(90, generator=torch.Generator().manual_seed(5))
    fresh, reference = real[order[:60]].flatten(1), real[order[60:]].flatten(1)
    assert found.row(FD).value == pytest.approx(frechet(samples[:60].flatten(1), reference), rel=1e-12)
    assert found.row(FD).floor == pytest.approx(frechet(fresh, reference), rel=1e-12)


def test_the_interval_covers_another_seeds_figure():
    real, rows = draws(150, 0), []
    train = draws(200, 1)
    for seed in range(2, 32):
        rows.append(evaluate(draws(60, seed), train, real, features=[Pixels()], splits=1).row(FD))
    mean = sum(row.value for row in rows) / len(rows)
    assert sum(row.low <= mean <= row.high for row in rows) >= 25


def test_label_agreement_stands_beside_the_judges_accuracy():
    def labelled(n, seed):
        labels = torch.arange(n) % 2
        return 0.1 * draws(n, seed) + labels.view(-1, 1, 1, 1) - 0.5, labels

    (train, y), (heldout, z), (samples, asked) = labelled(60, 0), labelled(30, 1), labelled(50, 2)
    asked[:5] = 1 - asked[:5]
    found = evaluate(
        samples, train, heldout, features=[Pixels()], train_labels=y, heldout_labels=z, sample_labels=asked
    )
    row = found.row("label agreement")
    assert (row.value, row.floor, row.n, row.better) == (0.9, 1.0, 50, "higher")
    assert row.low < 0.9 < row.high
    with pytest.raises(UserError, match="training and of the held-out"):
        evaluate(samples, train, heldout, features=[Pixels()], sample_labels=asked)


def test_the_same_call_gives_the_same_table_and_it_is_json():
    sets = draws(30, 0), draws(60, 1), draws(30, 2)
    first, second = (evaluate(*sets, features=[Pixels()], seed=3) for _ in range(2))
    assert first == second
    text = json.dumps(first.to_dict(), allow_nan=False)
    assert json.loads(text)["rows"][0]["name"] == FD
    copies = evaluate(draws(30, 0), draws(60, 1), draws(60, 1)[:30], features=[Pixels()])
    assert math.isnan(copies.memorisation.ratio)
    assert copies.to_dict()["memorisation"]["ratio"] is None
    assert all(len(line) < 200 for line in first.lines())
    with pytest.raises(UserError, match="There is no figure"):
        first.row("FID")


def test_bad_sets_are_refused():
    good = draws(30, 0)
    with pytest.raises(UserError, match="of one size"):
        evaluate(good, good, torch.zeros(30, 1, 2, 3), features=[Pixels()])
    with pytest.raises(UserError, match="only 19 samples"):
        evaluate_two(good[:19], good, features=[Pixels()])
    broken = good.clone()
    broken[4, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="samples hold values that are not finite"):
        evaluate_two(broken, good, features=[Pixels()])
