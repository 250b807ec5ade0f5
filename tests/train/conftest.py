"""Small pictures and a small network with dropout, for trainings of a few steps."""

import dataclasses

import pytest
import torch
from torch import nn

from backdrift.data.pictures import Pictures
from backdrift.train.options import TrainOptions, for_pictures
from backdrift.train.precision import Precision


class Tiny(nn.Module):
    """A linear network that sees noise and label, with dropout, so that torch's random state matters."""

    def __init__(self, shape=(1, 4, 4), classes=3, width=32):
        super().__init__()
        size = shape[0] * shape[1] * shape[2]
        self.enter = nn.Linear(size + 1, width)
        self.label = nn.Embedding(classes + 1, width)
        self.drop = nn.Dropout(0.2)
        self.leave = nn.Linear(width, size)

    def forward(self, x, noise, cond=None):
        h = self.enter(torch.cat([x.flatten(1), noise[:, None]], 1)) + self.label(cond["label"])
        return self.leave(self.drop(h.tanh())).view(x.shape)


@pytest.fixture
def pictures() -> Pictures:
    """50 pictures of noise, in three classes; an epoch is shorter than three batches."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 1, 4, 4), generator=generator, dtype=torch.uint8)
    names = [f"picture {i}" for i in range(50)]
    return Pictures(pixels, torch.arange(50) % 3, ("a", "b", "c"), names, {"kind": "test"})


@pytest.fixture
def options(pictures) -> TrainOptions:
    return dataclasses.replace(
        for_pictures(pictures),
        steps=12,
        batch=16,
        flip=True,
        precision=Precision.fp32,
        log_every=3,
        validate_every=0,
        checkpoint_every=5,
        sample_every=0,
    )


@pytest.fixture
def tiny():
    """Makes the same `Tiny` every time it is called; keyword arguments are Tiny's."""

    def make(**arguments):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return Tiny(**arguments)

    return make
