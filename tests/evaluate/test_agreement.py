"""Label agreement on classes that a judge cannot confuse."""

import pytest
import torch

from backdrift.errors import UserError
from backdrift.evaluate.agreement import label_agreement


def blobs(n, seed):
    labels = torch.arange(n) % 3
    noise = torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    return labels.view(-1, 1, 1, 1) - 1 + 0.02 * noise, labels


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_wrong_labels_are_counted_at_any_scale(scale):
    train, heldout, samples = blobs(60, 0), blobs(30, 1), blobs(50, 2)
    asked = samples[1].clone()
    asked[:7] = (asked[:7] + 1) % 3
    found = label_agreement(scale * samples[0], asked, scale * train[0], train[1], scale * heldout[0], heldout[1])
    assert (found.samples.count, found.samples.n) == (43, 50)
    assert (found.heldout.count, found.heldout.n, found.fitted) == (30, 30, 60)
    assert found.samples.interval[0] < found.samples.value == 0.86 < found.samples.interval[1]


def test_labels_must_fit():
    (train, y), (samples, asked) = blobs(60, 0), blobs(30, 1)
    with pytest.raises(UserError, match="30 samples and 29 labels"):
        label_agreement(samples, asked[1:], train, y, samples, asked)
    with pytest.raises(UserError, match="two classes"):
        label_agreement(samples, asked, train, torch.zeros_like(y), samples, asked)
