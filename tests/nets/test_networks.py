"""What every network promises, for each of them: shapes, zero start, conditions, derivatives, precision."""

import inspect
import json
import math
import subprocess
import sys

import pytest
import torch
import torch.utils.checkpoint

from backdrift.errors import UserError
from backdrift.nets import MLP, DiT, MPUNet, UNet, blocks, parameters_count
from backdrift.nets import mp_unet as mp_unet_module

SMALL = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_width": 16, "classes": 3}


def unet(channels=1, **changes):
    return UNet(channels, **{**SMALL, **changes})


def mp_unet(channels=1, **changes):
    return MPUNet(channels, **{**SMALL, **changes})


def dit(channels=1, **changes):
    choices = {"width": 32, "depth": 2, "head_width": 16, "registers": 2, "classes": 3}
    return DiT(channels, **{**choices, **changes})


def mlp():
    return MLP(5, width=32, blocks=2, classes=3)


NETWORKS = {
    "unet": (unet, (1, 7, 6)),
    "unet 1-D": (lambda: unet(2, dims=1), (2, 9)),
    "unet 3-D": (lambda: unet(dims=3, multipliers=(1, 1)), (1, 3, 4, 2)),
    "unet tokens": (lambda: unet(tokens=6, attention=(0, 1)), (1, 7, 6)),
    "unet resampling": (lambda: unet(residual_resampling=True), (1, 7, 6)),
    "mp-unet": (mp_unet, (1, 7, 6)),
    "mp-unet 1-D": (lambda: mp_unet(2, dims=1), (2, 9)),
    "mp-unet 3-D": (lambda: mp_unet(dims=3, multipliers=(1, 1)), (1, 3, 4, 2)),
    "mp-unet tokens": (lambda: mp_unet(tokens=6, attention=(0, 1)), (1, 7, 6)),
    "dit": (dit, (1, 7, 6)),
    "dit 1-D": (lambda: dit(2, dims=1, rotary=False), (2, 9)),
    "dit 3-D": (lambda: dit(dims=3, registers=0), (1, 3, 4, 2)),
    "dit tokens": (lambda: dit(tokens=6), (1, 7, 6)),
    "mlp": (mlp, (5,)),
}
TOKENS = [name for name in NETWORKS if "tokens" in name]
each_network = pytest.mark.parametrize("make, event", NETWORKS.values(), ids=NETWORKS)
each_with_tokens = pytest.mark.parametrize("make, event", [NETWORKS[name] for name in TOKENS], ids=TOKENS)


def awake(net, seed=0):
    """Every parameter that starts at zero made small and random, as after some training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.1) if p.ndim else p.fill_(0.5)
    return net


def inputs(event, batch, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *event, generator=g, dtype=torch.float64).to(dtype)
    noise = (torch.rand(batch, generator=g, dtype=torch.float64) * math.pi / 2).to(dtype)
    return x, noise, {"label": torch.arange(batch) % 4}


def token_inputs(batch):
    """Five condition tokens of width 6 per sample, of which samples have 5, 4, 3, ..."""
    g = torch.Generator().manual_seed(2)
    tokens = torch.randn(batch, 5, 6, generator=g)
    return {"tokens": tokens, "tokens_mask": torch.arange(5) < 5 - torch.arange(batch)[:, None]}


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
        h = 1e-6
        difference = net(x + h * dx, noise + h * dw, cond) - net(x - h * dx, noise - h * dw, cond)
        torch.testing.assert_close(y, net(x, noise, cond))
    assert slope.abs().max() > 0.1
    torch.testing.assert_close(slope, difference / (2 * h), rtol=1e-5, atol=1e-7)


@each_network
def test_reverse_over_forward_equals_finite_differences(make, event):
    """The gradient of a loss on the forward derivative with respect to one weight."""
    net = awake(make()).double().eval()  # while it trains, a magnitude-preserving network rescales its weights
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
from backdrift.nets import MLP, DiT, MPUNet, UNet
torch.manual_seed(0)
small = dict(width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16)
picture = (1, 7, 6)
for net, event in (
    (MLP(5, width=32, blocks=2), (5,)),
    (UNet(1, **small), picture),
    (MPUNet(1, **small), picture),
    (DiT(1, width=32, depth=2, head_width=16), picture),
):
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, w = torch.randn(4, *event), torch.rand(4)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    weights = list(net.parameters())
    gradients = [torch.autograd.grad(f(x, w).square().sum(), weights, allow_unused=True) for f in (compiled, net)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    slope = lambda x, w: torch.func.jvp(lambda x, w: net(x, w), (x, w), (x, w))
    for a, b in zip(torch.compile(slope, backend="aot_eager", fullgraph=True)(x, w), slope(x, w)):
        torch.testing.assert_close(a, b)
"""


@pytest.mark.slow
def test_the_compiler_traces_through_a_network_and_its_forward_derivative():
    """In its own process: a compiler that fails there leaves forward differentiation broken behind it."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def told_apart(net, event) -> bool:
    """Whether the output at 1e-3 steps of the noise angle moves by far more than rounding, at both ends and between."""
    x = inputs(event, 1)[0].expand(8, *event)
    with torch.no_grad():
        rounding = net(x, torch.full((8,), 0.5)).diff(dim=0).abs().max()
        starts = (0.0, 0.8, math.pi / 2 - 7e-3)
        outputs = [net(x, start + 1e-3 * torch.arange(8)).flatten(1) for start in starts]
    return all(y.diff(dim=0).norm(dim=1).min() > 20 * rounding + 1e-4 * y.norm(dim=1).mean() for y in outputs)


@each_network
def test_neighbouring_noise_levels_are_told_apart(make, event):
    assert told_apart(awake(make()), event)


BROKEN = {
    "deaf": lambda w: torch.full_like(w, 0.5),
    "in bf16": lambda w: w.bfloat16().float(),
    "of 100 steps": lambda w: (w * 100).floor() / 100,
    "clipped": lambda w: w.clamp(0.1, 1.4),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("make, event", [NETWORKS[name] for name in ("unet", "mp-unet", "dit", "mlp")])
def test_a_broken_embedding_is_noticed(make, event, broken, monkeypatch):
    """The test above fails where noise levels are merged before the embedding."""
    features = blocks.noise_features
    for module in (blocks, mp_unet_module):
        monkeypatch.setattr(module, "noise_features", lambda w, width: features(broken(w), width))
    assert not told_apart(awake(make()), event)


@each_network
def test_gradient_reaches_every_parameter(make, event):
    net = awake(make())
    x, noise, cond = inputs(event, 8)
    cond |= token_inputs(8) | {"summary": torch.randn(8, 6)} if net.config.get("tokens") else {}
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
    pyramid = {"channels": 3, "outputs": 5, "dims": 1, "width": 32, "multipliers": [1, 2, 2], "blocks": 3}
    pyramid |= {"attention": [0, 2], "head_width": 16, "dropout": 0.25, "classes": 7}
    patches = {"channels": 3, "outputs": 5, "dims": 3, "patch": 3, "width": 48, "depth": 2, "head_width": 24}
    patches |= {"registers": 5, "rotary": False, "dropout": 0.25, "classes": 7, "tokens": 9}
    point = {"size": 2, "width": 24, "blocks": 5, "dropout": 0.25, "classes": 7}
    pyramid |= {"tokens": 9}
    full = pyramid | {"residual_resampling": True}
    for network, config in ((UNet, full), (MPUNet, pyramid), (DiT, patches), (MLP, point)):
        assert network(**config).config == config
        assert set(inspect.signature(network).parameters) == set(config)


@each_with_tokens
def test_condition_tokens_are_a_set(make, event):
    """Any order of the tokens, the mask with them, gives the same; another token gives something else."""
    net = awake(make())
    x, noise, _ = inputs(event, 3)
    cond = token_inputs(3)
    y = net(x, noise, cond)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = {name: value[:, order] for name, value in cond.items()}
    torch.testing.assert_close(net(x, noise, shuffled), y, rtol=0, atol=1e-5)
    moved = cond | {"tokens": cond["tokens"][:, order]}  # the mask stays: other tokens are seen
    difference = (net(x, noise, moved) - y).flatten(1).abs().amax(1)
    assert difference[0] < 1e-5
    assert difference[1:].min() > 1e-3


@each_with_tokens
def test_masked_condition_tokens_are_not_there(make, event):
    net = awake(make())
    x, noise, _ = inputs(event, 5)
    cond = token_inputs(5)
    y = net(x, noise, cond)
    noisy = cond | {"tokens": cond["tokens"].masked_fill(~cond["tokens_mask"][:, :, None], 1e3)}
    torch.testing.assert_close(net(x, noise, noisy), y, rtol=0, atol=1e-6)
    short = {"tokens": cond["tokens"][2:3, :3]}
    torch.testing.assert_close(net(x[2:3], noise[2:3], short), y[2:3], rtol=0, atol=1e-5)
    none = cond | {"tokens_mask": torch.zeros(5, 5, dtype=torch.bool)}
    torch.testing.assert_close(net(x, noise, none), net(x, noise), rtol=0, atol=1e-5)
    assert (y - net(x, noise)).flatten(1).abs().amax(1).min() > 1e-3


@each_with_tokens
def test_forward_derivative_through_masked_tokens(make, event):
    net = awake(make()).double()
    x, noise, _ = inputs(event, 3, torch.float64)
    cond = token_inputs(3)
    dx, h = torch.randn_like(x), 1e-6
    _, slope = torch.func.jvp(lambda x: net(x, noise, cond), (x,), (dx,))
    difference = net(x + h * dx, noise, cond) - net(x - h * dx, noise, cond)
    torch.testing.assert_close(slope, difference / (2 * h), rtol=1e-5, atol=1e-7)


@each_with_tokens
@pytest.mark.parametrize(
    "cond, words",
    [
        ({"tokens": torch.zeros(2, 4, 5)}, r"\(2, any number, 6\), not \(2, 4, 5\)"),
        ({"tokens": torch.zeros(3, 4, 6)}, r"\(2, any number, 6\)"),
        ({"tokens": torch.zeros(2, 4, 6), "tokens_mask": torch.ones(2, 4)}, "True and False"),
        ({"tokens": torch.zeros(2, 4, 6), "tokens_mask": torch.ones(2, 3).bool()}, r"\(2, 4\)"),
    ],
)
def test_bad_tokens_are_refused(make, event, cond, words):
    x, noise, _ = inputs(event, 2)
    with pytest.raises(UserError, match=words):
        make()(x, noise, cond)


@pytest.mark.parametrize("make, event", [NETWORKS[name] for name in ("unet", "mp-unet", "dit", "mlp")])
def test_tokens_for_a_network_without_them_are_refused(make, event):
    x, noise, _ = inputs(event, 2)
    with pytest.raises(UserError, match="without condition tokens"):
        make()(x, noise, {"tokens": torch.zeros(2, 4, 6)})


@pytest.mark.parametrize("size", [(8, 8), (30, 30), (7, 9), (1, 5), (28, 28), (3, 16)])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("make", [unet, mp_unet, dit])
def test_pictures_of_any_size(make, size, channels):
    deeper = {} if make is dit else {"multipliers": (1, 2, 2), "attention": (2,)}
    net = awake(make(channels, **deeper))
    x = torch.randn(2, channels, *size)
    y = net(x, torch.rand(2))
    assert y.shape == x.shape
    assert y.isfinite().all()


@pytest.mark.parametrize("make", [unet, mp_unet, dit])
def test_every_pixel_of_an_odd_picture_is_seen_and_drawn(make):
    net = awake(make())
    x = torch.randn(1, 1, 5, 7, requires_grad=True)
    y = net(x, torch.rand(1))
    assert (y != 0).all()
    y.square().sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("make", [unet, mp_unet])
def test_the_same_in_either_memory_format(make):
    net = awake(make(3))
    x, noise, cond = inputs((3, 8, 8), 2)
    y = net(x, noise, cond)
    z = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), noise, cond)
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [unet, mp_unet, dit])
def test_dropout_acts_in_training_only(make):
    net = awake(make(dropout=0.5))
    x, noise, cond = inputs((1, 7, 6), 2)
    assert not torch.equal(net(x, noise, cond), net(x, noise, cond))
    net.eval()
    assert torch.equal(net(x, noise, cond), net(x, noise, cond))


@pytest.mark.parametrize(
    "choices, words",
    [
        ({"width": 20, "attention": ()}, "multiple of 16"),
        ({"attention": (2,)}, "level 2"),
        ({"head_width": 24}, "heads of width 24"),
        ({"multipliers": ()}, "at least"),
        ({"blocks": 0}, "at least"),
        ({"dims": 4}, "1, 2 or 3 dimensions"),
        ({"attention": (), "tokens": 5}, "level with attention"),
    ],
)
def test_unet_refuses_what_cannot_be_built(choices, words):
    with pytest.raises(UserError, match=words):
        unet(**choices)


def test_parameters_count():
    assert parameters_count(torch.nn.Linear(3, 4)) == 16
