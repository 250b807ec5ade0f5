"""Distances against closed forms, scipy's matrix square root, and brute force."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from backdrift.evaluate.distances import frechet, frechet_of_moments, kernel_distance, sliced_wasserstein


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(size, seed):
    root = normal(size, size + 3, seed=seed)
    return root @ root.T / size


def with_moments(n, mean, cov, seed):
    """A set whose sample mean and unbiased covariance are exactly `mean` and `cov`."""
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return white @ torch.linalg.cholesky(cov).T + mean


def by_square_root(mean_a, cov_a, mean_b, cov_b):
    root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real
    return float((mean_a - mean_b).square().sum() + torch.trace(cov_a + cov_b)) - 2 * float(np.trace(root))


def test_frechet_of_sets_with_given_moments_is_the_formula():
    mean_a, mean_b = normal(5, seed=0), normal(5, seed=1)
    cov_a, cov_b = covariance(5, 2), covariance(5, 3)
    expected = by_square_root(mean_a, cov_a, mean_b, cov_b)
    a, b = with_moments(40, mean_a, cov_a, 4), with_moments(23, mean_b, cov_b, 5)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_of_moments(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_axis_aligned_gaussians():
    mean = torch.tensor([1.0, -2.0])
    variances_a, variances_b = torch.tensor([4.0, 9.0]), torch.tensor([1.0, 16.0])
    expected = 5 + (2 - 1) ** 2 + (3 - 4) ** 2  # squared gap of the means and of the standard deviations
    value = frechet_of_moments(mean, variances_a.diag(), torch.zeros(2), variances_b.diag())
    assert value == pytest.approx(expected, rel=1e-12)


def test_frechet_between_gaussian_draws_converges_to_the_closed_form():
    a, b = normal(100_000, 3, seed=0), 2 * normal(100_000, 3, seed=1) + 1
    assert frechet(a, b) == pytest.approx(3 + 3, rel=0.02)


def test_frechet_with_fewer_pictures_than_features():
    a, b = normal(12, 30, seed=0), normal(9, 30, seed=1) + 0.3
    assert frechet(a, a) < 1e-12
    values = scipy.linalg.eigvals((torch.cov(a.T) @ torch.cov(b.T)).numpy()).real
    cross = np.sqrt(np.sort(values)[-8:]).sum()  # the rank of the product is 8 = 9 - 1
    traces = torch.trace(torch.cov(a.T) + torch.cov(b.T)) + (a.mean(0) - b.mean(0)).square().sum()
    assert frechet(a, b) == pytest.approx(float(traces) - 2 * cross, rel=1e-9)


def test_kernel_distance_is_the_sum_over_pairs():
    a, b = normal(7, 4, seed=0), normal(5, 4, seed=1) * 1.5 + 0.2

    def k(x, y):
        return (float(x @ y) / 4 + 1) ** 3

    within_a = np.mean([k(x, y) for x, y in itertools.permutations(a, 2)])
    within_b = np.mean([k(x, y) for x, y in itertools.permutations(b, 2)])
    across = np.mean([k(x, y) for x in a for y in b])
    for block in (1, 3, 100):
        assert kernel_distance(a, b, block=block) == pytest.approx(within_a + within_b - 2 * across, rel=1e-12)


def test_kernel_distance_is_unbiased_at_zero():
    values = np.array([kernel_distance(normal(20, 3, seed=2 * i), normal(30, 3, seed=2 * i + 1)) for i in range(400)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize(("n", "m"), [(6, 6), (7, 5), (4, 12)])
def test_sliced_wasserstein_in_one_dimension(n, m):
    a, b = normal(n, 1, seed=0), 2 * normal(m, 1, seed=1) + 1
    expected = scipy.stats.wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert sliced_wasserstein(a, b, projections=3, p=1.0) == pytest.approx(expected, rel=1e-12)
    # repeating every point n m / n or n m / m times leaves both laws as they are and makes the sizes equal
    x, y = a[:, 0].repeat_interleave(m).sort().values, b[:, 0].repeat_interleave(n).sort().values
    expected = float((x - y).square().mean().sqrt())
    assert sliced_wasserstein(a, b, projections=3) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_a_shift():
    a, shift = normal(50, 8, seed=0), torch.arange(8.0)
    expected = float(shift.norm()) / math.sqrt(8)  # the mean square of a projection of the shift is |shift|^2 / 8
    assert sliced_wasserstein(a, a + shift, projections=20_000) == pytest.approx(expected, rel=0.02)
    assert sliced_wasserstein(a, a.flip(0)) < 1e-12
