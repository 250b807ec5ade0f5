"""Noise paired with data by optimal transport: against all permutations, and on the stream of a training."""

import itertools
from dataclasses import replace

import pytest
import torch

from backdrift import objective as obj
from backdrift.data import digits
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.objective.pairing import nearest
from backdrift.posterior import flat
from backdrift.train import stream
from backdrift.train.options import for_pictures

CPU = torch.device("cpu")


def cost(x0, eps, order):
    return float(flat(x0 - eps[list(order)]).square().sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_the_best_of_all(seed):
    x0, eps = (Noise.of(seed, 6).at(name).normal(torch.zeros(6, 1, 2, 2)) for name in ("data", "noise"))
    found = nearest(x0, eps)
    best = min(itertools.permutations(range(6)), key=lambda order: cost(x0, eps, order))
    assert found.tolist() == list(best) and cost(x0, eps, best) < cost(x0, eps, range(6))


def test_noise_stays_among_its_label():
    x0, eps = (Noise.of(1, 7).at(name).normal(torch.zeros(7, 3)) for name in ("data", "noise"))
    label = torch.tensor([2, 0, 2, 0, 0, 1, 2])
    found = nearest(x0, eps, label)
    assert torch.equal(label[found], label) and sorted(found.tolist()) == list(range(7))
    kept = [p for p in itertools.permutations(range(7)) if torch.equal(label[list(p)], label)]
    assert found.tolist() == list(min(kept, key=lambda order: cost(x0, eps, order)))


def test_the_stream_exchanges_noise_within_groups_however_it_is_cut():
    pictures = digits()
    plain = replace(for_pictures(pictures), batch=32, label_dropout=0.0)
    paired = replace(plain, pairing=obj.OptimalTransport(16))
    places = torch.arange(64, 128)
    free, found = (stream.draw(pictures, options, places, CPU) for options in (plain, paired))
    assert torch.equal(free.x0, found.x0) and torch.equal(free.t, found.t)
    # the same noises, each used once in its group: so their law is what it was
    for group in range(4):
        mine, theirs = (s.noise.index[16 * group : 16 * group + 16] for s in (found, free))
        assert torch.equal(mine.sort().values, theirs) and not torch.equal(mine, theirs)
    assert torch.equal(found.noise.normal(found.x0), free.noise.normal(free.x0)[found.noise.index - 64])
    assert (
        flat(found.x0 - found.noise.normal(found.x0)).square().sum()
        < flat(free.x0 - free.noise.normal(free.x0)).square().sum()
    )
    for cut in (places.tensor_split(5), places.split(48), [places.flip(0)]):
        parts = torch.cat([stream.draw(pictures, paired, part, CPU).noise.index for part in cut])
        assert torch.equal(parts, found.noise.index if len(cut) > 1 else found.noise.index.flip(0))
    labels = found.cond["label"]
    for group in range(4):
        here = slice(16 * group, 16 * group + 16)
        assert torch.equal(labels[found.noise.index[here] - 64], labels[here])


def test_a_group_has_two_pictures():
    with pytest.raises(UserError, match="at least 2"):
        obj.OptimalTransport(1)
