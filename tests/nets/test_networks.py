"""What every network promises, for each of them: shapes, zero start, conditions, derivatives, precision."""

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.utils.checkpoint

from backdrift.errors import UserError
from backdrift.nets import MLP, UNet, parameters_count


def unet(channels=1, **changes):
    choices = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_width": 16, "classes": 3}
    return UNet(channels, **{**choices, **changes})


def mlp():
    return MLP(5, width=32, blocks=2, classes=3)


NETWORKS = [(unet, (1, 7, 6)), (mlp, (5,))]
each_network = pytest.mark.parametrize("make, event", NETWORKS, ids=["unet", "mlp"])


def awake(net, seed=0):
    """Every parameter that starts at zero made small and random, as after some training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return net


def inputs(event, batch, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *event, generator=g, dtype=torch.float64).to(dtype)
    noise = (torch.rand(batch, generator=g, dtype=torch.float64) * math.pi / 2).to(dtype)
    return x, noise, {"label": torch.arange(batch) % 4}


@each_network
def test_a_new_network_returns_exactly_zero(make, event):
    x, noise, cond = inputs(event, 3)
    y = make()(x, noise, cond)
    assert y.shape == x.shape
    assert not y.any()


@each_network
def test_a_sample_does_not_depend_on_its_batch(make, event):
    net = awake(make())
    x, noise, cond = inputs(event, 7)
    together = net(x, noise, cond)
    for i in range(7):
        alone = net(x[i : i + 1], noise[i : i + 1], {"label": cond["label"][i : i + 1]})
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


@each_network
def test_null_label_equals_no_label_and_differs_from_the_others(make, event):
    net = awake(make())
    x, noise, _ = inputs(event, 2)
    y = net(x, noise)
    null = net(x, noise, {"label": torch.tensor([3, 3])})
    assert torch.equal(y, null)
    assert torch.equal(y, net(x, noise, {}))
    other = net(x, noise, {"label": torch.tensor([3, 1])})
    torch.testing.assert_close(other[0], y[0], rtol=0, atol=1e-6)
    assert (other[1] - y[1]).abs().max() > 1e-3


@each_network
def test_a_label_out_of_range_is_refused(make, event):
    x, noise, _ = inputs(event, 2)
    with pytest.raises(UserError, match=r"0\.\.2"):
        make()(x, noise, {"label": torch.tensor([0, 4])})


@each_network
@pytest.mark.parametrize("grad", [True, False])
def test_forward_derivative_equals_finite_differences(make, event, grad):
    net = awake(make()).double()
    x, noise, cond = inputs(event, 2, torch.float64)
    noise = noise.clamp(0.1, 1.4)
    dx, dw = torch.randn_like(x), torch.randn_like(noise)
    with torch.set_grad_enabled(grad):
        y, slope = torch.func.jvp(lambda x, w: net(x, w, cond), (x, noise), (dx, dw))
        h = 1e-5
        difference = net(x + h * dx, noise + h * dw, cond) - net(x - h * dx, noise - h * dw, cond)
        torch.testing.assert_close(y, net(x, noise, cond))
    assert slope.abs().max() > 0.1
    torch.testing.assert_close(slope, difference / (2 * h), rtol=1e-5, atol=1e-7)


@each_network
def test_reverse_over_forward_equals_finite_differences(make, event):
    """The gradient of a loss on the forward derivative with respect to one weight."""
    net = awake(make()).double()
    x, noise, cond = inputs(event, 2, torch.float64)
    weight = net.conditioning.noise_in.weight

    def loss():
        y, slope = torch.func.jvp(lambda x, w: net(x, w, cond), (x, noise), (x, torch.cos(noise)))
        return (y * slope).sum()

    slope = torch.autograd.grad(loss(), weight)[0][0, 0]
    h = 1e-5
    with torch.no_grad():
        values = []
        for step in (h, -2 * h):
            weight[0, 0] += step
            values.append(loss())
    torch.testing.assert_close(slope, (values[0] - values[1]) / (2 * h), rtol=1e-5, atol=1e-9)


@each_network
def test_vmap_equals_a_batch(make, event):
    net = awake(make())
    x, noise, _ = inputs(event, 3)
    mapped = torch.vmap(lambda x, w: net(x[None], w[None])[0])(x, noise)
    torch.testing.assert_close(mapped, net(x, noise), rtol=1e-5, atol=1e-5)


@each_network
def test_checkpointing_gives_the_same_gradient(make, event):
    net = awake(make())
    x, noise, cond = inputs(event, 2)
    x.requires_grad_()
    plain = torch.autograd.grad(net(x, noise, cond).square().sum(), x)[0]
    y = torch.utils.checkpoint.checkpoint(net, x, noise, cond, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], plain)


COMPILED = """
import torch
from backdrift.nets import MLP, UNet
torch.manual_seed(0)
small = dict(width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16)
for net, event in ((MLP(5, width=32, blocks=2), (5,)), (UNet(1, **small), (1, 7, 6))):
    torch.nn.init.normal_(net.exit.weight)
    x, w = torch.randn(4, *event), torch.rand(4)
    slope = lambda x, w: torch.func.jvp(lambda x, w: net(x, w), (x, w), (x, w))
    for a, b in zip(torch.compile(slope, backend="aot_eager", fullgraph=True)(x, w), slope(x, w)):
        torch.testing.assert_close(a, b)
"""


@pytest.mark.slow
def test_the_compiler_traces_through_a_forward_derivative():
    """In its own process: a compiler that fails there leaves forward differentiation broken behind it."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


@each_network
def test_neighbouring_noise_levels_are_told_apart(make, event):
    """The output at 1e-3 steps of the noise angle moves by far more than rounding, at both ends and in between."""
    net = awake(make())
    x = inputs(event, 1)[0].expand(8, *event)
    with torch.no_grad():
        rounding = net(x, torch.full((8,), 0.5)).diff(dim=0).abs().max()
        for start in (0.0, 0.8, math.pi / 2 - 7e-3):
            y = net(x, start + 1e-3 * torch.arange(8)).flatten(1)
            assert y.diff(dim=0).norm(dim=1).min() > 20 * rounding + 1e-4 * y.norm(dim=1).mean()


@each_network
def test_gradient_reaches_every_parameter(make, event):
    net = awake(make())
    x, noise, cond = inputs(event, 8)
    net(x, noise, cond).square().sum().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@each_network
def test_bf16_weights_and_autocast_stay_close_to_float32(make, event):
    net = awake(make())
    x, noise, cond = inputs(event, 4)
    exact = net(x, noise, cond)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = net(x, noise, cond)
    for y in (automatic, net.bfloat16()(x, noise, cond)):
        assert y.dtype == torch.float32
        assert (y - exact).norm() < 0.03 * exact.norm()


@each_network
def test_config_rebuilds_the_network_from_json(make, event):
    net = awake(make())
    again = type(net)(**json.loads(json.dumps(net.config)))
    assert again.config == net.config
    again.load_state_dict(net.state_dict())
    x, noise, cond = inputs(event, 2)
    assert torch.equal(again(x, noise, cond), net(x, noise, cond))


def test_config_holds_every_choice():
    picture = {"channels": 3, "width": 32, "multipliers": [1, 2, 2], "blocks": 3, "attention": [0, 2], "head_width": 16}
    picture |= {"dropout": 0.25, "classes": 7}
    assert UNet(**picture).config == picture
    point = {"size": 2, "width": 24, "blocks": 5, "dropout": 0.25, "classes": 7}
    assert MLP(**point).config == point


@pytest.mark.parametrize("size", [(8, 8), (30, 30), (7, 9), (1, 5), (28, 28), (3, 16)])
@pytest.mark.parametrize("channels", [1, 4])
def test_unet_takes_pictures_of_any_size(size, channels):
    net = awake(unet(channels, multipliers=(1, 2, 2), attention=(2,)))
    x = torch.randn(2, channels, *size)
    y = net(x, torch.rand(2))
    assert y.shape == x.shape
    assert y.isfinite().all()


def test_every_pixel_of_an_odd_picture_is_seen():
    net = awake(unet())
    x = torch.randn(1, 1, 5, 7, requires_grad=True)
    net(x, torch.rand(1)).square().sum().backward()
    assert (x.grad != 0).all()


def test_unet_gives_the_same_in_either_memory_format():
    net = awake(unet(3))
    x, noise, cond = inputs((3, 8, 8), 2)
    y = net(x, noise, cond)
    z = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), noise, cond)
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only():
    net = awake(unet(dropout=0.5))
    x, noise, cond = inputs((1, 7, 6), 2)
    assert not torch.equal(net(x, noise, cond), net(x, noise, cond))
    net.eval()
    assert torch.equal(net(x, noise, cond), net(x, noise, cond))


@pytest.mark.parametrize(
    "choices, words",
    [
        ({"width": 20}, "multiple of 16"),
        ({"attention": (2,)}, "level 2"),
        ({"head_width": 24}, "heads of width 24"),
        ({"multipliers": ()}, "at least"),
        ({"blocks": 0}, "at least"),
    ],
)
def test_unet_refuses_what_cannot_be_built(choices, words):
    with pytest.raises(UserError, match=words):
        unet(**choices)


def test_parameters_count():
    assert parameters_count(torch.nn.Linear(3, 4)) == 16
