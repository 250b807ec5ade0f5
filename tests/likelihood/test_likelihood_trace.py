"""Traces of explicit matrices: averages over all sign vectors, low rank, standard errors."""

import itertools

import pytest
import torch

from backdrift.errors import UserError
from backdrift.likelihood import ExactTrace, Hutchinson, HutchPP
from backdrift.noise import Noise

A = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TRACES = A.diagonal(dim1=1, dim2=2)


def product(v):
    return (A.mT @ v.unsqueeze(-1)).squeeze(-1)


def test_exact():
    like = torch.zeros(2, 5, dtype=torch.float64)
    torch.testing.assert_close(ExactTrace().diagonal(product, ExactTrace().draw(Noise.of(0, 2), like)), TRACES[None])


def test_hutchinson_is_unbiased_and_has_its_variance():
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
    probes = signs[:, None].expand(-1, 2, -1)
    found = Hutchinson(32).diagonal(product, probes)
    torch.testing.assert_close(found.mean(0), TRACES)  # element by element, which is the map
    symmetric = (A + A.mT) / 2
    off = symmetric - torch.diag_embed(symmetric.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(found.sum(-1).var(0, correction=0), 2 * off.square().sum((1, 2)))


def test_hutchpp_is_exact_at_low_rank_and_unbiased():
    rng = torch.Generator().manual_seed(1)
    left, right = torch.randn(2, 3, 8, 2, generator=rng, dtype=torch.float64)
    low = left @ right.mT
    trace, like = HutchPP(sketch=3, probes=2), torch.zeros(3, 8, dtype=torch.float64)
    found = trace.diagonal(lambda v: (low.mT @ v.unsqueeze(-1)).squeeze(-1), trace.draw(Noise.of(3, 3), like)).sum(-1)
    torch.testing.assert_close(found, low.diagonal(dim1=1, dim2=2).sum(1).expand(2, 3))
    # on a full matrix: all signs for the rest, one sketch
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5)), dtype=torch.float64)[:, None].expand(-1, 2, -1)
    sketch = HutchPP(2, 2).draw(Noise.of(0, 2), torch.zeros(2, 5, dtype=torch.float64))[:2]
    found = HutchPP(2, 32).diagonal(product, torch.cat([sketch, signs])).sum(-1)
    torch.testing.assert_close(found.mean(0), TRACES.sum(1))
    assert bool((found.var(0) < Hutchinson(32).diagonal(product, signs).sum(-1).var(0)).all())


def test_probes_are_signs_of_their_sample():
    like = torch.zeros(4, 100, dtype=torch.float64)
    probes = Hutchinson(3).draw(Noise.of(5, 4), like)
    assert set(probes.unique().tolist()) == {-1.0, 1.0} and abs(float(probes.mean())) < 0.1
    alone = Hutchinson(3).draw(Noise(5, torch.tensor([2])), like[:1])
    torch.testing.assert_close(probes[:, 2:3], alone)


def test_mistakes():
    for make in (lambda: Hutchinson(1), lambda: HutchPP(0), lambda: HutchPP(2, 1)):
        with pytest.raises(UserError, match="at least"):
            make()
