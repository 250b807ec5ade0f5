"""The text transformer and the networks that read: what is masked is not there, what is nothing is the call without."""

import pytest
import torch

from backdrift.data.bytepairs import BytePairs
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.nets import DiT, MPUNet, UNet
from backdrift.nets.text import GivenText, Reading, TextTransformer, mean_of
from backdrift.process import Gaussian
from backdrift.schedule import Cosine
from backdrift.target import EDM_F
from backdrift.train.texts import OwnText

SMALL = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_width": 16, "classes": 3}
NETS = {
    "unet": lambda: UNet(1, **SMALL, tokens=32),
    "mp-unet": lambda: MPUNet(1, **SMALL, tokens=32),
    "dit": lambda: DiT(1, width=32, depth=2, head_width=16, classes=3, tokens=32),
}
every_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def awake(module):
    """The module with no weight at zero, so that every path counts."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def reading(make):
    torch.manual_seed(1)
    return awake(Reading(make(), TextTransformer(300, 7, 32, 2, 16)))


def inputs(batch=4):
    g = torch.Generator().manual_seed(2)
    text = torch.randint(1, 300, (batch, 7), generator=g) * (torch.arange(7) < torch.arange(7, 7 - batch, -1)[:, None])
    return torch.randn(batch, 1, 8, 8, generator=g), torch.linspace(0.1, 1.4, batch), text


def test_the_transformer_sees_order_and_nothing_behind_the_end():
    reader = awake(TextTransformer(300, 7, 32, 2, 16))
    text = torch.tensor([[5, 9, 200, 0, 0, 0, 0]])
    tokens, there = reader(text)
    assert there.tolist() == [[True] * 3 + [False] * 4]
    short, _ = reader(text[:, :3])
    torch.testing.assert_close(tokens[:, :3], short)
    swapped, _ = reader(torch.tensor([[9, 5, 200]]))
    assert (mean_of(swapped, there[:, :3]) - mean_of(short, there[:, :3])).abs().max() > 1e-3
    longer, _ = reader(torch.tensor([[5, 9, 200, 7]]))
    assert (longer[:, 0] - short[:, 0]).abs().max() > 1e-3  # every piece looks at every other one
    torch.testing.assert_close(mean_of(tokens, there), short.mean(1))


@every_net
def test_no_text_and_a_text_of_nothing_are_the_plain_network(make):
    net = reading(make)
    x, noise, text = inputs()
    cond = {"label": torch.tensor([0, 1, 2, 3])}
    plain = net.net(x, noise, cond)
    torch.testing.assert_close(net(x, noise, cond), plain, atol=0, rtol=0)
    torch.testing.assert_close(net(x, noise, {**cond, "text": torch.zeros_like(text)}), plain)
    told = net(x, noise, {**cond, "text": text})
    assert ((told - plain).flatten(1).abs().amax(1) > 1e-3).all()
    some = text.clone()
    some[1] = 0
    mixed = net(x, noise, {**cond, "text": some})
    torch.testing.assert_close(mixed[1], plain[1])
    torch.testing.assert_close(mixed[[0, 2, 3]], told[[0, 2, 3]])


@every_net
def test_label_and_text_act_together_and_all_weights_are_trained(make):
    net = reading(make).train()
    x, noise, text = inputs()
    cond = {"label": torch.tensor([0, 1, 2, 0]), "text": text}
    one = net(x, noise, cond)
    assert (one - net(x, noise, {**cond, "label": torch.tensor([1, 1, 2, 0])}))[0].abs().max() > 1e-3
    one.square().sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # without a mean over the data no bias of keys matters, and not every label occurs
    assert not [name for name in still if "label" not in name and "further" not in name], still


@every_net
def test_forward_derivatives_pass_through(make):
    net = reading(make)
    x, noise, text = inputs()
    cond, d = {"text": text}, torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    _, tangent = torch.func.jvp(lambda x: net(x, noise, cond), (x,), (d,))
    h = 1e-2
    numeric = (net(x + h * d, noise, cond) - net(x - h * d, noise, cond)) / (2 * h)
    assert (tangent - numeric).norm() < 1e-2 * numeric.norm()


def test_encoded_texts_are_split_into_tokens_and_mask():
    text = torch.randn(2, 3, 5)
    text[..., -1] = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    tokens, there = GivenText(4)(text)
    assert torch.equal(tokens, text[..., :4]) and there.tolist() == [[True, True, False], [False] * 3]
    assert torch.equal(mean_of(tokens, there)[0], (text[0, 0, :4] + text[0, 1, :4]) / 2)
    assert torch.equal(mean_of(tokens, there)[1], torch.zeros(4))
    with pytest.raises(UserError, match="5"):
        GivenText(4)(text[..., :4])


def test_wrong_texts_are_one_sentence():
    net = reading(NETS["unet"])
    x, noise, text = inputs()
    with pytest.raises(UserError, match="3 texts for 4 samples"):
        net(x, noise, {"text": text[:3]})
    with pytest.raises(UserError, match="up to 7"):
        net(x, noise, {"text": torch.ones(4, 8, dtype=torch.int64)})
    with pytest.raises(UserError, match="up to 7"):
        net(x, noise, {"text": text.float()})
    with pytest.raises(UserError, match="heads of width 10"):
        TextTransformer(300, 7, 32, 2, 10)


def test_an_encoder_says_what_it_cannot_read():
    encoder = OwnText(BytePairs(), 12)
    assert encoder.encode(["a", "bc de"]).tolist() == [
        [33, 98, *[0] * 10],
        [33, 99, 100, 33, 101, 102, *[0] * 6],
    ]
    with pytest.raises(UserError, match="empty"):
        encoder.encode(["a", "  "])
    with pytest.raises(UserError, match="'much too long a text' has 21 pieces, and this model reads at most 12"):
        encoder.encode(["much too long a text"])
    assert encoder.encode(["twelve bytes"[:11]]).shape == (1, 12)


def test_a_net_that_reads_can_be_told_further_angles():
    """What few-step objectives tell a network passes through."""
    net = Reading(NETS["unet"](), TextTransformer(300, 7, 32, 1, 16))
    network = Network(net, Gaussian(Cosine()), EDM_F(0.5), (1, 8, 8), told=("toward",))
    assert "toward" in net.conditioning.further.layers
    x, _, text = inputs()
    assert network(x, 0.5, {"text": text, "toward": torch.tensor(0.2)}).mean.shape == x.shape
