"""Runs upon a run that follows texts, and a network that learns to fill in from one that does not."""

from dataclasses import replace

import pytest
import torch

import backdrift as bd
from backdrift.config import from_config, to_config
from backdrift.data.derived import Edges, KnownPixels
from backdrift.data.scenes import scenes
from backdrift.errors import UserError
from backdrift.run import Run
from backdrift.train.distributed import World
from backdrift.train.loop import check
from backdrift.train.networks import DiTChoice, FileNet, UNetChoice
from backdrift.train.onto import AdaptedChoice, BesideChoice, ControlledChoice, weights_of
from backdrift.train.options import TrainOptions
from backdrift.train.texts import OwnText

SMALL = UNetChoice(width=16, multipliers=(1, 1, 1), blocks=1, attention=(2,), head_width=16)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(pictures, options, run) of a training with texts; not to be changed."""
    pictures = scenes(60)
    options = TrainOptions(steps=2, batch=4, checkpoint_every=0, validate_every=0, precision="fp32", lr=0.01, net=SMALL)
    options = options.with_text(OwnText.of(pictures, width=32, depth=1))
    folder = tmp_path_factory.mktemp("told") / "base"
    bd.train(pictures, options, run=folder, progress=False)
    return pictures, options, folder


def test_control_keeps_the_network_and_the_reader_of_its_base(told, tmp_path):
    pictures, options, base = told
    net = ControlledChoice(options.net, {"edges": 1})
    made = replace(options, net=net, derived=(Edges(),))
    model = bd.train(pictures, made, run=tmp_path / "run", start_from=base, progress=False)
    own, kept = weights_of(base), weights_of(tmp_path / "run")
    for name, value in own.items():
        inside = name.replace("net.", "net.base.", 1) if name.startswith("net.") else name
        assert value.equal(kept[inside]), name
    assert any(not value.equal(own["net." + n.split("side.")[1]]) for n, value in kept.items() if "side." in n)
    model, plain = bd.load(tmp_path / "run"), bd.load(base)
    words = {"text": "a red square", "steps": 2}
    assert model.sample(2, **words).equal(plain.sample(2, **words))
    x0 = pictures.tensor(torch.arange(2))
    assert not model.sample(2, **words, control=model.hint(x0)).equal(plain.sample(2, **words))


def test_an_adapter_of_a_run_with_texts(told, tmp_path):
    pictures, options, base = told
    made = replace(options, net=AdaptedChoice.of(options.net, base, 2, options.text))
    bd.train(pictures, made, run=tmp_path / "run", start_from=base, progress=False)
    words = {"text": "a red square", "steps": 2}
    whole, merged = bd.load(tmp_path / "run"), bd.adapt(bd.load(base), tmp_path / "run")
    torch.testing.assert_close(merged.sample(2, **words), whole.sample(2, **words), atol=1e-5, rtol=0)
    assert not merged.sample(2, **words).equal(bd.load(base).sample(2, **words))
    assert any("reader" in name for name in weights_of(tmp_path / "run"))


@pytest.mark.parametrize("choice", [SMALL, DiTChoice(patch=2, width=32, depth=1, head_width=16)])
def test_filling_in_begins_as_the_network_that_it_starts_from(choice):
    torch.manual_seed(0)
    wider = BesideChoice(choice, {"known": 1, "mask": 1})
    plain, net = choice.build((1, 8, 8), 3), wider.build((1, 8, 8), 3)
    torch.nn.init.normal_(plain.exit.weight)
    wider.start(net, plain.state_dict(), "no")
    x, w = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 1.2])
    cond = KnownPixels().cond(x, bd.Noise.of(0, 2))
    torch.testing.assert_close(net(x, w, cond), plain(x, w))
    assert from_config(to_config(wider)) == wider
    again = wider.build((1, 8, 8), 3)
    wider.start(again, net.state_dict(), "no")
    assert again(x, w, cond).equal(net(x, w, cond))


def test_the_scale_is_the_bases(told):
    pictures, options, base = told
    std = Run(base).config()["data"]["std"]
    other = bd.train(pictures, replace(options, std=2 * std), progress=False)
    assert other.denoiser.sigma_data == 2 * std
    assert bd.load(base).denoiser.sigma_data == std


def test_what_stands_on_a_run_is_not_sharded():
    made = TrainOptions(net=BesideChoice(SMALL, {"known": 1}), batch=8)
    with pytest.raises(UserError, match="stand by themselves"):
        check(made, World(0, 2, torch.device("cpu")), shard=True)


def test_nobody_elses_code_is_run(tmp_path):
    with pytest.raises(UserError, match="library's own"):
        BesideChoice(FileNet("net.py", "Net", ""), {"known": 1})
    with pytest.raises(UserError, match="There is no model"):
        AdaptedChoice(SMALL, str(tmp_path), 0).build((1, 8, 8), 0)
