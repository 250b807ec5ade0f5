"""The transformer's parts against closed forms: patches, positions, the start as identity, registers."""

import itertools
import math

import pytest
import torch

from backdrift.errors import UserError
from backdrift.nets import DiT, positions
from backdrift.nets.dit import cut_patches, join_patches, unturned


def dit(**changes):
    return DiT(1, **{"width": 32, "depth": 2, "head_width": 16, "classes": 3, **changes})


@pytest.mark.parametrize("space", [(6,), (4, 6), (2, 4, 6)])
def test_patches_are_what_slicing_gives(space):
    x = torch.randn(2, 3, *space)
    patches, sizes = cut_patches(x, 2)
    assert sizes == tuple(n // 2 for n in space)
    for token, place in enumerate(itertools.product(*(range(n) for n in sizes))):
        window = x[(..., *(slice(2 * i, 2 * i + 2) for i in place))]
        assert torch.equal(patches[:, token], window.flatten(1))


@pytest.mark.parametrize("space", [(7,), (5, 4), (1, 8), (3, 4, 5)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_joined_patches_are_the_picture(space, patch):
    x = torch.randn(2, 3, *space)
    patches, sizes = cut_patches(x, patch)
    assert torch.equal(join_patches(patches, sizes, patch, x.shape[2:]), x)
    assert patches.shape == (2, math.prod(sizes), 3 * patch ** len(space))
    torch.testing.assert_close(patches.square().sum(), x.square().sum())  # the rest is zeros


def test_grid_runs_row_by_row():
    places = positions.grid((2, 3))
    assert places.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert positions.grid((3,)).tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("width, axes", [(16, 1), (16, 2), (20, 2), (32, 3)])
def test_products_of_turned_vectors_depend_on_the_difference_of_positions(width, axes):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, width, dtype=torch.float64)
    one, two, shift = torch.randint(0, 30, (3, 1, axes)).double()

    def product(a, b):
        turned = positions.rotate(q, positions.turns(a, width)), positions.rotate(k, positions.turns(b, width))
        return (turned[0] * turned[1]).sum()

    here, there = product(one, two), product(one + shift, two + shift)
    torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
    for axis in range(axes):  # and on every coordinate of the difference
        assert (product(one, two + torch.eye(axes)[axis]) - here).abs() > 1e-2


def test_rotation_is_a_product_of_complex_numbers():
    x, angle = torch.randn(5, 3, 8), torch.rand(3, 4) * 6
    turned = positions.rotate(x, (angle.cos(), angle.sin()))
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(3, 4), angle)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], dim=-1))


def test_phases_run_from_one_radian_per_step_to_nearly_the_slowest():
    angles = positions.phases(torch.tensor([[3.0, 5.0]]), 4)
    expected = torch.tensor([3.0, 5.0])[:, None] * positions.SLOWEST ** -torch.tensor([0, 0.25, 0.5, 0.75])
    torch.testing.assert_close(angles[0], expected)


@pytest.mark.parametrize("width, axes", [(16, 1), (16, 2), (32, 3)])
def test_sines_tell_all_places_apart(width, axes):
    places = positions.grid((9,) * axes)
    features = positions.sines(places, width)
    assert features.shape == (9**axes, width)
    used = width // (2 * axes) * 2 * axes
    torch.testing.assert_close(features.square().sum(1), torch.full((9**axes,), used / 2))
    assert torch.cdist(features, features).fill_diagonal_(9).min() > 0.1


def test_registers_are_not_turned():
    turns = unturned(positions.turns(positions.grid((2, 2)), 8), 3)
    x = torch.randn(7, 8)
    turned = positions.rotate(x, turns)
    assert torch.equal(turned[4:], x[4:])
    assert (turned[1:4] != x[1:4]).any(1).all()


def test_blocks_start_as_the_identity():
    """adaLN-Zero: the gates are zero, whatever the embedding."""
    net = dit()
    torch.manual_seed(0)
    x, embedding = torch.randn(2, 5, 32), torch.randn(2, 32)
    for block in net.blocks:
        assert torch.equal(block(x, embedding, None, None), x)
        torch.nn.init.normal_(block.modulation.weight)
        assert not torch.allclose(block(x, embedding, None, None), x, atol=0.1)


def test_a_block_equals_its_definition():
    """Written out in single steps, with torch's attention module as the reference."""
    torch.manual_seed(0)
    block = dit().blocks[0].double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, embedding = torch.randn(2, 5, 32).double(), torch.randn(2, 32).double()
    m = block.modulation(embedding).view(2, 6, 1, 32)
    reference = torch.nn.MultiheadAttention(32, 2, batch_first=True).double()
    reference.in_proj_weight.data, reference.in_proj_bias.data = block.attention.qkv.weight, block.attention.qkv.bias
    reference.out_proj.weight, reference.out_proj.bias = block.attention.out.weight, block.attention.out.bias

    def standard(h):
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    h = standard(x) * (1 + m[:, 0]) + m[:, 1]
    y = x + m[:, 2] * reference(h, h, h)[0]
    h = standard(y) * (1 + m[:, 3]) + m[:, 4]
    h = torch.nn.functional.gelu(h @ block.first.weight.T + block.first.bias)
    y = y + m[:, 5] * (h @ block.second.weight.T + block.second.bias)
    torch.testing.assert_close(block(x, embedding, None, None), y)


@pytest.mark.parametrize("dims, space", [(1, (9,)), (2, (5, 5)), (3, (3, 2, 3))])
def test_patches_that_change_places_change_the_answer(dims, space):
    """Both kinds of positions are seen: without any, a transformer could not tell a picture from its shuffling."""
    for rotary in (False, True):
        torch.manual_seed(0)
        net = dit(dims=dims, patch=1, rotary=rotary)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.2)
        x = torch.randn(1, 1, *space)
        y, z = net(x, torch.ones(1)), net(x.flip(-1), torch.ones(1)).flip(-1)
        assert (y - z).abs().max() > 1e-2


@pytest.mark.parametrize(
    "choices, words",
    [
        ({"width": 40}, "heads of even width 16"),
        ({"width": 15, "head_width": 5}, "heads of even width 5"),
        ({"patch": 0}, "at least"),
        ({"depth": 0}, "at least"),
        ({"registers": -1}, "negative"),
        ({"dims": 0}, "1, 2 or 3 dimensions"),
        ({"dropout": 1.0}, "share"),
    ],
)
def test_what_cannot_be_built_is_refused(choices, words):
    with pytest.raises(UserError, match=words):
        dit(**choices)


def test_another_number_of_axes_is_refused():
    with pytest.raises(UserError, match="2 axes of space"):
        dit()(torch.zeros(1, 1, 8), torch.zeros(1))
