"""Control and adapters: the base is there unchanged at the start, and is left alone by training."""

from copy import deepcopy

import pytest
import torch

from backdrift.errors import UserError
from backdrift.nets import MLP, DiT, MPUNet, UNet
from backdrift.nets.beside import Beside
from backdrift.nets.control import Controlled
from backdrift.nets.lora import LowRank

MAKERS = {
    "unet": lambda: UNet(1, width=16, multipliers=(1, 2), blocks=2, attention=(1,), head_width=16, classes=3),
    "unet, resampling blocks": lambda: UNet(
        1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16, classes=3, residual_resampling=True
    ),
    "mp-unet": lambda: MPUNet(1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16, classes=3),
    "dit": lambda: DiT(1, width=32, depth=3, head_width=16, classes=3),
}


@pytest.fixture(params=list(MAKERS))
def base(request):
    """A network that is not zero, as if it were trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MAKERS[request.param]()
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.2) if p.ndim > 1 else p.data.normal_(0.5, 0.1)
    return net.eval()


def seen(seed=0, side=9):
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(3, 1, side, side, generator=g), torch.rand(3, generator=g)
    return x, w, {"label": torch.tensor([0, 2, 3])}, {"edges": torch.randn(3, 1, side, side, generator=g)}


def trained(net, steps=3):
    """The net after a few steps towards something, in training mode."""
    net.train()
    x, w, label, edges = seen(1)
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        (net(x, w, {**label, **edges}) - edges["edges"]).square().mean().backward()
        optimiser.step()
    return net.eval()


def test_control_begins_as_the_base_and_leaves_it_alone(base):
    before = deepcopy(base.state_dict())
    net = Controlled(base, {"edges": 1})
    net.begin()
    x, w, label, edges = seen()
    plain = base(x, w, label)
    assert net(x, w, {**label, **edges}).equal(plain)
    net = trained(net)
    assert not any(m.training for m in net.base.modules())
    after = net.base.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())
    assert net(x, w, label).equal(plain)  # without the condition it is the base, exactly
    followed = net(x, w, {**label, **edges})
    assert float((followed - plain).detach().abs().max()) > 1e-3
    # one sample's condition acts on that sample alone
    other = edges["edges"].clone()
    other[2] = -other[2]
    moved = (net(x, w, {**label, "edges": other}) - followed).detach().flatten(1).abs().amax(1)
    assert float(moved[:2].max()) < 1e-5 < 1e-4 < float(moved[2])


def test_the_side_copies_what_it_uses(base):
    net = Controlled(base, {"edges": 1, "segments": 1})
    net.begin()
    x, w, label, _ = seen()
    ours, theirs = net.side.trail(x, w, label), base.trail(x, w, label)
    assert len(ours) == len(theirs) == len(net.joins)
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    assert names and not any(name.startswith("base.") for name in names)
    x.requires_grad_(True)
    net(x, w, {**label, "edges": x.detach()}).square().mean().backward()
    assert all(net.get_parameter(n).grad is not None for n in names), "a weight that nothing can reach"


def test_what_is_added_enters_where_the_trail_says(base):
    """Adding the difference of two trails to one network's gives what a network with the other trail would give."""
    x, w, label, _ = seen()
    zeros = [torch.zeros_like(h) for h in base.trail(x, w, label)]
    plain = base(x, w, label)
    torch.testing.assert_close(base(x, w, label, zeros), plain)
    for place in range(len(zeros)):
        added = [h.clone() for h in zeros]
        added[place] += torch.randn(added[place].shape, generator=torch.Generator().manual_seed(place))
        assert float((base(x, w, label, added) - plain).detach().abs().max()) > 1e-4, place


def test_an_adapter_begins_as_the_base_and_merges(base):
    before = deepcopy(base.state_dict())
    x, w, label, _ = seen()
    plain = base(x, w, label)
    net = LowRank(base, 2)
    assert net(x, w, label).equal(plain)
    assert set(net.state_dict()) == {f"{part}.{k}" for part in ("down", "up") for k in net.down}
    net = trained(net)
    adapted = net(x, w, label)
    assert float((adapted - plain).detach().abs().max()) > 1e-3
    torch.testing.assert_close(net.merged()(x, w, label), adapted, rtol=0, atol=1e-5)
    assert all(value.equal(base.state_dict()[name]) for name, value in before.items())
    net.strength = 0.0
    assert net(x, w, label).equal(plain)
    net.strength = 0.5
    half = net.weights()
    net.strength = 1.0
    for name, weight in net.weights().items():
        middle = (weight + base.get_parameter(name)) / 2
        torch.testing.assert_close(half[name], middle, rtol=1e-5, atol=1e-6)
        change = (weight - base.get_parameter(name)).flatten(1).double()
        assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 2


def test_the_change_of_a_weight_is_the_scaled_product():
    net = LowRank(UNet(1, width=16, multipliers=(1,), blocks=1, attention=()), 2, alpha=6.0)
    net.strength = 0.5
    for p in net.parameters():
        torch.nn.init.normal_(p)
    name = "down.0.0.block.conv_in.weight"
    a, b = net.down[name.replace(".", "/")], net.up[name.replace(".", "/")]
    assert a.shape == (2, 16 * 9) and b.shape == (16, 2)
    change = (net.weights()[name] - net.base.get_parameter(name)).flatten(1)
    torch.testing.assert_close(change, 0.5 * 6 / 2 * (b @ a), rtol=1e-4, atol=1e-5)


def test_pictures_beside_the_state():
    net = Beside(UNet(3, outputs=1, width=16, multipliers=(1,), attention=()), {"known": 1, "mask": 1})
    torch.nn.init.normal_(net.net.exit.weight)
    x, w, _, _ = seen()
    known = torch.randn_like(x)
    given = net(x, w, {"known": known})
    assert given.equal(net.net(torch.cat([x, known, torch.zeros_like(x)], 1), w))
    assert net(x, w).equal(net(x, w, {"known": torch.zeros_like(x), "mask": torch.zeros_like(x)}))
    with pytest.raises(UserError, match=r"'mask' must have shape \(3, 1, 9, 9\)"):
        net(x, w, {"mask": torch.zeros(3, 1, 8, 9)})


def test_what_cannot_be_controlled_or_adapted_is_refused():
    with pytest.raises(UserError, match="MLP"):
        Controlled(MLP(4), {"edges": 1})
    with pytest.raises(UserError, match="rank"):
        LowRank(MLP(4), 0)
