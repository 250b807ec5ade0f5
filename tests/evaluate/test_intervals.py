"""Intervals: exact cases, scipy, and their coverage by simulation."""

import numpy as np
import pytest
import scipy.stats
import torch

from backdrift.evaluate.distances import frechet
from backdrift.evaluate.intervals import bootstrap_ratio_of_medians, jackknife, wilson


def test_jackknife_of_a_mean_is_students_interval():
    x = torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    half = jackknife(lambda kept: x[kept].mean(0), 10)
    expected = scipy.stats.t.ppf(0.975, 9) * scipy.stats.sem(x.numpy(), axis=0)
    np.testing.assert_allclose(half.numpy(), expected, rtol=1e-9)


def test_jackknife_leaves_each_sample_out_once():
    counts = torch.zeros(37)

    def statistic(kept):
        left_out = torch.ones(37, dtype=torch.bool)
        left_out[kept] = False
        counts[left_out] += 1
        return torch.zeros(1)

    jackknife(statistic, 37)
    assert counts.tolist() == [1.0] * 37


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_jackknife_covers_the_expected_frechet_distance(shift):
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(150, 3, dtype=torch.float64, generator=generator)
    values, halves = [], []
    for _ in range(150):
        x = torch.randn(100, 3, dtype=torch.float64, generator=generator) + shift
        values.append(frechet(x, reference))
        halves.append(float(jackknife(lambda kept, x=x: torch.tensor([frechet(x[kept], reference)]), 100)))
    values, halves = np.array(values), np.array(halves)
    covered = np.mean(np.abs(values - values.mean()) <= halves)
    assert covered > 0.88
    # and it is not wide for nothing: half of a 95 % interval is about two standard deviations
    assert halves.mean() < 3.5 * values.std()


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (9, 10), (50, 100), (1000, 1000)])
def test_wilson_is_scipys(successes, n):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bootstrap_covers_the_ratio_of_medians():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for i in range(100):
        a, b = (torch.empty(n, dtype=torch.float64).exponential_(generator=generator) for n in (120, 80))
        low, high = bootstrap_ratio_of_medians(3 * a, 2 * b, draws=200, seed=i)
        covered += low <= 1.5 <= high
    assert covered >= 87
