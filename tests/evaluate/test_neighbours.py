"""Nearest neighbours' labels against a count by hand."""

from collections import Counter

import pytest
import torch

import backdrift as bd
from backdrift.evaluate import neighbour_agreement


@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("cosine", [False, True])
def test_the_share_is_the_count(k, cosine):
    generator = torch.Generator().manual_seed(0)
    queries, points = torch.randn(60, 3, generator=generator), torch.randn(40, 3, generator=generator)
    wanted, labels = torch.randint(3, (60,), generator=generator), torch.randint(3, (40,), generator=generator)
    right = 0
    for query, label in zip(queries, wanted.tolist(), strict=True):
        away = -torch.cosine_similarity(query[None], points) if cosine else (points - query).norm(dim=1)
        near = labels[away.argsort()[:k]].tolist()
        count = Counter(near)
        # of those with most votes, the one whose places add up to the nearest
        best = max(count, key=lambda c: (count[c], sum(k - place for place, n in enumerate(near) if n == c)))
        right += best == label
    found = neighbour_agreement(queries, wanted, points, labels, k=k, cosine=cosine)
    assert (found.count, found.n) == (right, 60)


def test_more_neighbours_than_points_are_refused():
    with pytest.raises(bd.UserError, match="k is from 1"):
        neighbour_agreement(torch.zeros(1, 2), torch.zeros(1).long(), torch.zeros(2, 2), torch.zeros(2).long(), k=3)
