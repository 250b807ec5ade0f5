"""The magnitude-preserving network keeps its promise: mean squares stay at 1, and weights at their length."""

import math

import pytest
import torch

from backdrift.errors import UserError
from backdrift.nets import MPUNet
from backdrift.nets.mp_unet import MPBlock, MPConditioning, MPLayer, mp_cat, mp_silu, mp_sum, normalised


def mean_square(x):
    return x.square().mean().item()


def small(**changes):
    choices = {"width": 32, "multipliers": (1, 2), "blocks": 2, "attention": (1,), "head_width": 32, "classes": 3}
    return MPUNet(3, **{**choices, **changes})


def layers(net):
    return [m for m in net.modules() if isinstance(m, MPLayer)]


def test_normalised_has_mean_square_one_and_keeps_directions():
    x = torch.randn(3, 8, 5) * torch.rand(3, 1, 5) * 100
    y = normalised(x, 1)
    torch.testing.assert_close(y.square().mean(1), torch.ones(3, 5))
    torch.testing.assert_close(torch.cosine_similarity(x, y, dim=1), torch.ones(3, 5))
    assert not normalised(torch.zeros(2, 4), 1).any()


def test_silu_keeps_the_mean_square_of_normal_numbers():
    """By quadrature of the standard normal density."""
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    assert torch.trapezoid(mp_silu(z).square() * density, z).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_sum_of_independent_inputs_keeps_the_mean_square(share):
    torch.manual_seed(0)
    a, b = torch.randn(2, 200_000)
    y = mp_sum(a, b, share)
    assert mean_square(y) == pytest.approx(1, abs=0.02)
    slope = torch.linalg.lstsq(torch.stack([a, b], 1), y[:, None]).solution.flatten()
    torch.testing.assert_close(slope[1] / slope.sum(), torch.tensor(share), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [(8, 8), (8, 24), (32, 4)])
def test_concatenation_gives_both_parts_the_same_weight_and_keeps_the_mean_square(channels):
    torch.manual_seed(0)
    a, b = (torch.randn(50, c, 30, 30) for c in channels)
    y = mp_cat(a, b)
    assert y.shape[1] == sum(channels)
    assert mean_square(y) == pytest.approx(1, abs=0.02)
    one, two = y.split(channels, dim=1)
    assert one.square().sum() / two.square().sum() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("dims, kernel", [(0, 1), (1, 3), (2, 3), (3, 1)])
def test_layers_keep_the_mean_square_of_independent_inputs(dims, kernel):
    torch.manual_seed(0)
    layer = MPLayer(24, 400, dims, kernel)
    assert layer.weight.shape == (400, 24, *[kernel] * dims)
    x = torch.randn(64, 24, *[9] * dims)
    inside = (..., *[slice(1, -1)] * dims)  # the rim sees zeros beside the picture
    assert mean_square(layer(x)[inside]) == pytest.approx(1, abs=0.03)
    with torch.no_grad():
        layer.weight.mul_(17)
    assert mean_square(layer(x)[inside]) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_a_new_network_keeps_the_mean_square_throughout(seed):
    """Averages of signals that vary from place to place (pooling, attention, the rim of zeros) lose some; no more."""
    torch.manual_seed(seed)
    net = small(blocks=1)
    torch.nn.init.ones_(net.gain)
    seen = {}
    for name, module in net.named_modules():
        if isinstance(module, MPBlock):
            torch.nn.init.constant_(module.gain, 0.2)
        if isinstance(module, (MPBlock, MPConditioning)) or name.endswith(("first", "second", "qkv", "modulation")):
            module.register_forward_hook(lambda module, given, out, name=name: seen.update({name: mean_square(out)}))
    noise = torch.linspace(0, math.pi / 2, 8)
    net(torch.randn(8, 3, 32, 32), noise, {"label": torch.arange(8) % 4})
    assert len(seen) == 28
    assert {name: value for name, value in seen.items() if not 0.4 < value < 1.6} == {}
    for kind in ("first", "second", "modulation", "conditioning"):
        logs = [math.log(value) for name, value in seen.items() if name.endswith(kind)]
        assert 0.55 < math.exp(sum(logs) / len(logs)) < 1.3


def test_training_keeps_the_weights_at_their_length_and_evaluation_leaves_them_alone():
    torch.manual_seed(0)
    net = small()
    torch.nn.init.ones_(net.gain)
    for layer in layers(net):
        layer.weight.data.mul_(3)
    x, noise = torch.randn(2, 3, 8, 8), torch.rand(2)
    grown = net.eval()(x, noise)
    assert all(mean_square(layer.weight) == pytest.approx(9, rel=1e-4) for layer in layers(net))
    torch.testing.assert_close(net.train()(x, noise), grown, rtol=1e-4, atol=1e-5)  # the length never mattered
    for layer in layers(net):
        torch.testing.assert_close(layer.weight.square().flatten(1).mean(1), torch.ones(len(layer.weight)))
    before = [p.clone() for p in net.parameters()]
    net(x, noise)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_two_passes_before_one_gradient():
    """Bringing the weights back between them disturbs no gradient."""
    torch.manual_seed(0)
    net = small()
    torch.nn.init.ones_(net.gain)
    x, noise = torch.randn(2, 3, 8, 8), torch.rand(2)
    for layer in layers(net):
        layer.weight.data.mul_(1.01)
    net(net(x, noise), noise).sum().backward()
    assert all(layer.weight.grad.isfinite().all() for layer in layers(net))


def test_the_gradient_is_orthogonal_to_every_weight_vector():
    torch.manual_seed(0)
    net = small(classes=0)
    torch.nn.init.ones_(net.gain)
    for block in net.middle:
        torch.nn.init.ones_(block.gain)
    net(torch.randn(4, 3, 8, 8), torch.rand(4)).square().sum().backward()
    for layer in layers(net):
        w, g = layer.weight.flatten(1), layer.weight.grad.flatten(1)
        assert ((w * g).sum(1).abs() <= 1e-4 * w.norm(dim=1) * g.norm(dim=1) + 1e-6).all()


def test_a_constant_can_be_drawn_without_biases():
    """Of an all-zero picture the network still makes something: the channel of ones is seen."""
    torch.manual_seed(0)
    net = small()
    torch.nn.init.ones_(net.gain)
    assert mean_square(net(torch.zeros(1, 3, 8, 8), torch.ones(1))) > 0.05


@pytest.mark.parametrize(
    "choices, words",
    [({"width": 33, "attention": ()}, "even"), ({"head_width": 24}, "heads of width 24"), ({"dims": 5}, "dimensions")],
)
def test_what_cannot_be_built_is_refused(choices, words):
    with pytest.raises(UserError, match=words):
        small(**choices)
