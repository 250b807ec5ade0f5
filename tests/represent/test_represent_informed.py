"""Networks that are told a representation: nothing before training, nothing where nothing is known, exact otherwise."""

import pytest
import torch

import backdrift as bd
from backdrift.config import from_config, to_config
from backdrift.noise import Noise
from backdrift.represent import EncoderChoice, InformedChoice, Likeness, informed, representation_of, unit
from backdrift.train.networks import DiTChoice, MPUNetChoice, UNetChoice

SHAPE, SIZE = (1, 8, 8), 6
NETS = (
    UNetChoice(width=16, multipliers=(1, 2), blocks=1, attention=(1,)),
    MPUNetChoice(width=16, multipliers=(1, 2), blocks=1, attention=(), head_width=16),
    DiTChoice(width=64, depth=1),
)


def filled(net, seed=0):
    """The net with random numbers where it starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return net.eval()


def built(choice, classes=3):
    return InformedChoice(choice, EncoderChoice(16), SIZE).build(SHAPE, classes)


def inputs(count=4):
    generator = torch.Generator().manual_seed(1)
    x, like = (torch.randn(count, *SHAPE, generator=generator) for _ in range(2))
    return x, like, torch.linspace(0.2, 1.4, count)


@pytest.mark.parametrize("choice", NETS, ids=lambda c: c.kind)
def test_it_starts_as_the_network_and_then_heeds_what_it_is_told(choice):
    x, like, noise = inputs()
    torch.manual_seed(0)
    net = built(choice)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "conditioning" not in name or ".plain." in name:
                p.add_(torch.randn_like(p) * 0.1)
        assert torch.equal(net(x, noise, {"like": like}), net(x, noise))  # its own layer is still zero
        filled(net)
        plain, told = net(x, noise), net(x, noise, {"like": like})
    assert not torch.isclose(plain, told, atol=1e-4).flatten(1).all(1).any()


@pytest.mark.parametrize("choice", NETS, ids=lambda c: c.kind)
def test_a_picture_and_its_representation_say_the_same_and_zeros_say_nothing(choice):
    x, like, noise = inputs()
    net = filled(built(choice))
    label = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        encoded = unit(net.conditioning.encoder.features(like))
        torch.testing.assert_close(encoded.square().mean(1), torch.ones(4))
        told = net(x, noise, {"like": like, "label": label})
        torch.testing.assert_close(net(x, noise, {"representation": 3 * encoded, "label": label}), told)
        # hidden sample by sample, as training hides it
        hidden = like * torch.tensor([1.0, 0, 1, 0]).view(4, 1, 1, 1)
        mixed, plain = net(x, noise, {"like": hidden, "label": label}), net(x, noise, {"label": label})
        torch.testing.assert_close(mixed[::2], told[::2])
        torch.testing.assert_close(mixed[1::2], plain[1::2])
        torch.testing.assert_close(net(x, noise, {"representation": 0 * encoded, "label": label}), plain)


def test_the_wrong_shapes_are_refused():
    x, like, noise = inputs()
    net = built(NETS[0])
    with pytest.raises(bd.UserError, match="pictures to be like"):
        net(x, noise, {"like": like[:, :, :4]})
    with pytest.raises(bd.UserError, match="Representations must be"):
        net(x, noise, {"representation": torch.zeros(4, SIZE + 1)})
    with pytest.raises(bd.UserError, match="told what a picture shows"):
        informed(NETS[0].build(SHAPE, 0))


def test_the_choice_survives_the_config_and_starts_from_an_encoder_or_its_own_kind():
    choice = InformedChoice(NETS[0], EncoderChoice(16), SIZE)
    assert from_config(to_config(choice)) == choice
    encoder, net = filled(EncoderChoice(16).build(SHAPE, 0, SIZE), 7), choice.build(SHAPE, 0)
    choice.start(net, encoder.state_dict(), "no")
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(representation_of(net, x), unit(encoder.features(x)).detach())
    other = choice.build(SHAPE, 0)
    choice.start(other, filled(net).state_dict(), "no")
    torch.testing.assert_close(representation_of(other, x), representation_of(net, x))
    with pytest.raises(bd.UserError, match="no: "):
        choice.start(net, NETS[0].build(SHAPE, 0).state_dict(), "no")


def test_the_condition_is_the_picture_itself():
    x = torch.randn(5, *SHAPE)
    assert torch.equal(Likeness().cond(x, Noise.of(0, 5))["like"], x)
