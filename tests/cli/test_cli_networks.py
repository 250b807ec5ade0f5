"""Choosing the network by the command line: each trains, is written down, loads and samples."""

import json

import pytest
import torch

import backdrift as bd

FEW = ("--steps", 3, "--batch", 8, "--sample-every", 0, "--precision", "fp32")
CHOICES = {
    "dit": ("--network", "dit", "--dit.width", 64, "--dit.depth", 1, "--dit.patch", 2, "--dit.registers", 1),
    "mp-unet": (
        *("--network", "mp-unet", "--mp-unet.width", 32, "--mp-unet.multipliers", 1, "--mp-unet.blocks", 1),
        "--mp-unet.attention",
    ),
    "unet": ("--network", "unet", "--unet.width", 16, "--unet.multipliers", 1, 1, "--unet.blocks", 1)
    + ("--unet.attention", "--unet.residual-resampling", "True"),
}
WRITTEN = {
    "dit": {"kind": "net.DiT", "width": 64, "depth": 1, "patch": 2, "registers": 1, "rotary": True},
    "mp-unet": {"kind": "net.MPUNet", "width": 32, "multipliers": [1], "attention": []},
    "unet": {"kind": "net.UNet", "width": 16, "multipliers": [1, 1], "residual_resampling": True},
}
PACES = {"dit": 2e-3, "mp-unet": 2e-2, "unet": 1e-3}


@pytest.mark.parametrize("name", CHOICES)
def test_a_run_with_each_network(cli, tmp_path, name):
    folder = tmp_path / "run"
    outcome = cli("train", "--run", folder, *FEW, *CHOICES[name])
    assert outcome.status == 0, outcome.err
    options = json.loads((folder / "config.json").read_text())["options"]
    assert {key: options["net"][key] for key in WRITTEN[name]} == WRITTEN[name]
    assert options["lr"] == pytest.approx(PACES[name])
    model = bd.load(folder)
    pictures = model.sample(2, label=[0, 3], guidance=2.0, steps=2, seed=0)
    assert pictures.shape == (2, 1, 8, 8)
    assert torch.equal(pictures, bd.load(folder).sample(2, label=[0, 3], guidance=2.0, steps=2, seed=0))


def test_a_typed_learning_rate_is_kept(cli, tmp_path):
    assert cli("train", "--run", tmp_path / "run", *FEW, *CHOICES["mp-unet"], "--lr", 0.004).status == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["lr"] == 0.004


@pytest.mark.parametrize(
    "command, sentence",
    [
        ("train --network dti", "--network cannot be 'dti'"),
        ("train --dit.width 64", "--dit.width shapes the dit, and the network is the unet; add --network dit"),
        ("train --network dit --unet.width 32", "--unet.width shapes the unet, and the network is the dit"),
        ("train --network mp-unet --unet.residual-resampling True", "--unet.residual-resampling shapes the unet"),
        ("train --network dit --dit.width 40", "heads of even width 64"),
        ("train --network mp-unet --mp-unet.attention 7", "level 7, but levels run from 0"),
        ("train --network dit --net mine.py:Net", "cannot go with --net"),
        ("train --dit.depth 2 --net mine.py:Net", "cannot go with --net"),
    ],
)
def test_mistakes_about_networks(refused, tmp_path, monkeypatch, command, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(*command.split())
    assert list(tmp_path.iterdir()) == []
