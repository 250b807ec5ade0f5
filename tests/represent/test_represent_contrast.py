"""The contrastive loss against the sum that defines it, and an encoder trained with it."""

import math

import pytest
import torch

import backdrift as bd
from backdrift.represent import Contrast, EncoderChoice, nt_xent


def by_hand(first, second, temperature):
    """Equation 1 of Chen et al. 2020, one vector at a time."""
    count = len(first)
    z = [v / v.norm() for v in torch.cat([first, second])]
    losses = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        others = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * count) if k != i)
        losses.append(-math.log(math.exp(float(z[i] @ z[partner]) / temperature) / others))
    return torch.tensor([(losses[i] + losses[i + count]) / 2 for i in range(count)], dtype=torch.float64)


def vectors(count=5, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, size, dtype=torch.float64, generator=generator) for _ in range(2))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_loss_is_the_sum_that_defines_it(temperature):
    first, second = vectors()
    torch.testing.assert_close(nt_xent(first, second, temperature), by_hand(first, second, temperature))


def test_its_gradient_is_that_of_the_sum():
    first, second = (v.requires_grad_() for v in vectors(3, 3))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (first, second))


def test_it_looks_at_angles_only_and_at_no_order():
    first, second = vectors()
    loss = nt_xent(first, second, 0.3)
    lengths = torch.tensor([[0.1], [2.0], [30.0], [1.0], [7.0]])
    torch.testing.assert_close(nt_xent(first * lengths, second / lengths, 0.3), loss)
    torch.testing.assert_close(nt_xent(second, first, 0.3), loss)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(nt_xent(first[order], second[order], 0.3), loss[order])
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))).Q
    torch.testing.assert_close(nt_xent(first @ turn, second @ turn, 0.3), loss)


def test_its_ends():
    # all alike: nothing can be told, log(2 B - 1); pairs on axes of their own: recognised for certain
    same = torch.ones(6, 3)
    torch.testing.assert_close(nt_xent(same, same, 0.2), torch.full((6,), math.log(11)))
    axes = torch.eye(6)
    assert nt_xent(axes, axes, 0.02).max() < 1e-6
    with pytest.raises(bd.UserError, match="at least two"):
        nt_xent(axes[:1], axes[:1], 0.2)


def test_representations_have_mean_square_one_and_know_their_shape():
    net = EncoderChoice(16).build((3, 9, 7), 0, 10)
    encoder = Contrast(10).network(net, bd.process.Gaussian(bd.schedule.Cosine()), None, (3, 9, 7), 0.5, ())
    found = encoder(torch.randn(4, 3, 9, 7))
    assert found.shape == (4, 10)
    torch.testing.assert_close(found.square().mean(1), torch.ones(4))
    bd.nets.ConvEncoder(**net.config).load_state_dict(net.state_dict())
    with pytest.raises(bd.UserError, match="shape"):
        encoder(torch.randn(4, 3, 9, 9))


def test_no_picture_of_a_batch_changes_the_representation_of_another():
    encoder = EncoderChoice(16).build((1, 8, 8), 0, 6)
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(encoder.features(x)[2:3], encoder.features(x[2:3]))


@pytest.mark.parametrize("make", [lambda: Contrast(1), lambda: Contrast(temperature=0.0), lambda: Contrast(views=())])
def test_choices_that_make_no_sense_are_refused(make):
    with pytest.raises(bd.UserError):
        make()


def test_training_in_bf16_sees_the_same_views():
    from backdrift.noise import Noise
    from backdrift.objective.base import Samples

    changes = bd.represent.views_for((3, 16, 16), mirror=True)
    objective = Contrast(8, views=changes)
    torch.manual_seed(0)
    encoder = objective.network(EncoderChoice(16).build((3, 16, 16), 0, 8), None, None, (3, 16, 16), 0.5, ())
    nothing = torch.zeros(6)
    samples = Samples(torch.rand(6, 3, 16, 16) * 2 - 1, nothing, {}, Noise.of(0, 6), nothing, nothing, nothing, nothing)
    full = objective.losses(encoder, None, samples).total
    with torch.autocast("cpu", torch.bfloat16):
        half = objective.losses(encoder, None, samples).total
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)
