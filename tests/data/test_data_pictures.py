"""The set itself: conversion, statistics, the split, and the digits."""

import numpy as np
import pytest
import torch

import backdrift.data as data
from backdrift.errors import UserError


def make(pixels, **fields):
    count = len(pixels)
    return data.Pictures(pixels, None, (), [str(i) for i in range(count)], {"kind": "test"}, **fields)


def noise(count, shape=(1, 4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def test_bytes_to_tensor_and_back_is_the_identity_on_all_256_values():
    every = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    x = make(every).tensor()
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    assert torch.equal(data.to_uint8(x), every)


def test_std_and_radius_agree_with_numpy():
    pixels = noise(2500, (3, 4, 5))
    x = pixels.numpy() / 127.5 - 1
    found = make(pixels)
    assert found.std == pytest.approx(x.std(), rel=1e-12)
    norms = np.linalg.norm(x.reshape(len(x), -1), axis=1)
    assert found.radius == pytest.approx(norms.max() / np.sqrt(60), rel=1e-12)


def test_split_is_a_partition_of_about_the_chosen_fraction():
    whole = make(noise(2000), validation=0.25)
    train, held = whole.split()
    assert sorted(train.names + held.names, key=int) == whole.names
    assert abs(len(held) - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)


def test_split_depends_on_the_pixels_only():
    pixels = noise(300)
    held = {row.numpy().tobytes() for row in make(pixels).split()[1].pixels}
    turned = make(pixels.flip(0)[:200])
    parts = turned.split()
    assert all((row.numpy().tobytes() in held) == (side == 1) for side in (0, 1) for row in parts[side].pixels)


@pytest.mark.parametrize("block", [1, 7])
def test_copies_stay_on_one_side(block):
    pixels = noise(400)
    pixels[200:240] = pixels[:40].flip(0)
    train, held = make(pixels, block=block, validation=0.3).split()
    rows = [{row.numpy().tobytes() for row in part.pixels} for part in (train, held)]
    assert rows[0] and rows[1] and not rows[0] & rows[1]


def test_blocks_stay_together():
    train, held = make(noise(1005), block=10).split()
    sides = [{int(name) // 10 for name in part.names} for part in (train, held)]
    assert sides[1] and not sides[0] & sides[1]


@pytest.mark.parametrize("validation", [1e-9, 1 - 1e-9])
def test_each_part_has_at_least_one_picture(validation):
    for count in (2, 3, 10):
        train, held = make(noise(count), validation=validation).split()
        assert min(len(train), len(held)) == 1 and len(train) + len(held) == count


def test_copies_of_one_picture_cannot_be_split():
    with pytest.raises(UserError, match="copies"):
        make(noise(1).repeat(5, 1, 1, 1)).split()


def test_the_fingerprint_sees_pixels_labels_and_order():
    whole = data.digits()
    changed = whole.pixels.clone()
    changed[1796, 0, 7, 7] ^= 1
    labels = whole.labels.clone()
    labels[0] = 1
    others = [
        data.Pictures(changed, whole.labels, whole.classes, whole.names, {}),
        data.Pictures(whole.pixels, labels, whole.classes, whole.names, {}),
        whole.subset(torch.arange(1796, -1, -1)),
    ]
    prints = [whole.fingerprint] + [other.fingerprint for other in others]
    assert len(set(prints)) == 4
    assert whole.fingerprint == data.digits().fingerprint == whole.source["fingerprint"]


def test_subset_takes_everything_along():
    whole = data.digits()
    some = whole.subset([5, 3])
    assert some.names == ["digit 5", "digit 3"]
    assert torch.equal(some.cond()["label"], whole.labels[[5, 3]])
    assert torch.equal(some.tensor([1]), whole.tensor([3]))
    assert data.load(some.source).fingerprint == some.fingerprint
    assert len(whole.subset(slice(0, 7))) == 7


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    found = data.digits()
    assert found.shape == (1, 8, 8) and found.classes == tuple("0123456789")
    back = torch.round(found.pixels.double() * 16 / 255).reshape(1797, 64)
    assert np.array_equal(back.numpy(), values)
    assert np.array_equal(found.labels.numpy(), labels)
    assert np.array_equal(found.tensor().numpy().reshape(1797, 64) == -1, values == 0)


def test_split_parts_can_be_loaded_again():
    for part in data.digits(validation=0.3).split():
        again = data.load(part.source)
        assert again.fingerprint == part.fingerprint and again.source == part.source


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(UserError, match="between 0 and 1"):
        data.digits(validation=fraction)


def test_labels_must_fit():
    pixels = noise(3)
    for labels in (torch.tensor([0, 1]), torch.tensor([0, 1, 2]), torch.tensor([0, -1, 1])):
        with pytest.raises(UserError, match=r"[Ll]abels"):
            data.Pictures(pixels, labels, ("a", "b"), ["1", "2", "3"], {})
