"""Nearest-neighbour figures against loops over all pairs."""

import numpy as np
import pytest
import torch

from backdrift.evaluate.manifold import density_coverage, precision_recall, radii


def two_sets():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(50, 3, dtype=torch.float64, generator=generator)
    fake = torch.randn(41, 3, dtype=torch.float64, generator=generator) * 0.9 + 1.2
    return real, fake


def brute_force(real, fake, k):
    real, fake = real.numpy(), fake.numpy()

    def radius(points):
        return [
            sorted(np.linalg.norm(p - q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)
        ]

    def holds(centres, point, r):
        return [np.linalg.norm(point - c) <= s for c, s in zip(centres, r, strict=True)]

    r_real, r_fake = radius(real), radius(fake)
    in_real = np.array([holds(real, y, r_real) for y in fake])
    in_fake = np.array([holds(fake, x, r_fake) for x in real])
    return in_real.any(1).mean(), in_fake.any(1).mean(), in_real.sum() / (k * len(fake)), in_real.any(0).mean()


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_all_four_against_loops(k, offset):
    real, fake = two_sets()
    expected = brute_force(real, fake, k)
    assert len(set(expected)) == 4 and max(expected[:2]) < 1  # the case tells the four figures apart
    for block in (7, 2048):
        pair = real + offset, fake + offset
        found = (*precision_recall(*pair, k=k, block=block), *density_coverage(*pair, k=k, block=block))
        assert found == pytest.approx(expected, abs=1e-12)


def test_identical_sets_and_sets_far_apart():
    real, _ = two_sets()
    assert precision_recall(real, real) == (1.0, 1.0)
    assert density_coverage(real, real)[1] == 1.0
    assert precision_recall(real, real + 100) == (0.0, 0.0)
    assert density_coverage(real, real + 100) == (0.0, 0.0)


def test_repeated_points_hold_each_other():
    # every radius is zero, and the distance of equal points is known up to rounding only
    points = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    assert precision_recall(points, points) == (1.0, 1.0)


def test_radii_of_a_line():
    points = torch.tensor([[0.0], [1.0], [3.0], [6.0]], dtype=torch.float64)
    assert radii(points, 1).tolist() == [1, 1, 4, 9]
    assert radii(points, 2).tolist() == [9, 4, 9, 25]
