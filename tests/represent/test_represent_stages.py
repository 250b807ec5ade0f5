"""The two stages of RCG: representations as data, a prior of them, and pictures of what it draws."""

import pytest
import torch

import backdrift as bd
from backdrift.represent import EncoderChoice, InformedChoice, Vectors, draw, representations, unit
from backdrift.train.networks import UNetChoice


def encode(x):
    return x.flatten(1)[:, :5] * 2


def test_vectors_are_the_representations_of_the_pictures_own_parts():
    pictures = bd.data.digits()
    vectors = Vectors.of(pictures, encode, "an encoder")
    for ours, theirs in zip(vectors.split(), pictures.split(), strict=True):
        torch.testing.assert_close(ours.tensor(), encode(theirs.tensor()))
        assert torch.equal(ours.cond([3, 1])["label"], theirs.labels[[3, 1]])
        torch.testing.assert_close(ours.tensor([3, 1]), encode(theirs.tensor([3, 1])))
    train = vectors.split()[0]
    assert train.shape == (5,) and train.std == pytest.approx(float(train.values.double().std()))
    assert train.radius == pytest.approx(float(train.values.square().mean(1).sqrt().max()))
    assert vectors.fingerprint == Vectors.of(pictures, encode, "an encoder").fingerprint
    assert vectors.fingerprint != Vectors.of(pictures, encode, "another").fingerprint


class Recorded:
    """Stands for a model and keeps what it was asked."""

    def __init__(self, shape, net=None):
        self.event_shape, self.asked = shape, []
        self.denoiser = net if net is not None else torch.nn.Identity()

    def sample(self, **asked):
        self.asked.append(asked)
        return torch.randn(len(asked["index"]), *self.event_shape)


def net(size=4):
    choice = UNetChoice(width=16, multipliers=(1,), blocks=1, attention=(), head_width=16)
    return InformedChoice(choice, EncoderChoice(16), size).build((1, 8, 8), 0)


def test_both_stages_are_asked_for_the_same_samples_from_noises_of_their_own():
    prior, model = Recorded((4,)), Recorded((1, 8, 8), net())
    made = draw(prior, model, 3, label=2, seed=5, steps=7, guidance=1.5)
    first, second = prior.asked[0], model.asked[0]
    assert made.shape == (3, 1, 8, 8)
    assert first["index"] == second["index"] == [0, 1, 2] and first["label"] == second["label"] == 2
    assert second["seed"] == 5 and second["steps"] == 7 and second["guidance"] == 1.5
    assert first["seed"] != 5 and first["seed"] >= 0
    assert second["cond"]["representation"].shape == (3, 4)


def test_a_prior_of_another_encoder_is_refused():
    with pytest.raises(bd.UserError, match="not of one encoder"):
        representations(Recorded((5,)), Recorded((1, 8, 8), net(4)), [0])
    with pytest.raises(bd.UserError, match="told what a picture shows"):
        representations(Recorded((5,)), Recorded((1, 8, 8)), [0])


def test_unit_keeps_directions_and_zeros():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]]) * 2**0.5)
