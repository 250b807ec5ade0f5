"""`backdrift train --task encoder` from end to end."""

import json

import pytest
import torch

import backdrift as bd
from backdrift.run import Run

NET = ("--encoder.width", 16, "--encoder.size", 8, "--precision", "fp32")
WORDS = ("--task", "encoder", *NET, "--checkpoint-every", 4)


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory):
    """An encoder of the digits after 8 steps."""
    from backdrift.cli import main

    folder = tmp_path_factory.mktemp("runs") / "encoder"
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in ("train", *WORDS, "--run", folder, "--steps", 8, "--batch", 32)])
    assert ended.value.code == 0
    return folder


def test_an_encoder_is_trained_measured_and_loaded(encoder_run):
    encoder = bd.load_encoder(encoder_run)
    x = bd.data.digits().tensor([0, 1, 2])
    assert encoder(x).shape == (3, 8)
    found = json.loads((encoder_run / "neighbours.json").read_text())
    assert 0.9 < found["pixels"]["count"] / found["pixels"]["n"] <= 1
    assert "an encoder" in (encoder_run / "report.html").read_text()
    assert Run(encoder_run).options().objective.views  # read back from the config


def test_what_is_no_encoder_is_refused_and_an_encoder_does_not_sample(encoder_run, digits_run):
    with pytest.raises(bd.UserError, match="holds no encoder"):
        bd.load_encoder(digits_run)
    with pytest.raises(bd.UserError, match="does not sample"):
        bd.load(encoder_run)


def test_a_stopped_encoder_goes_on_bit_for_bit(tmp_path, encoder_run):
    pictures, options = bd.data.digits(), Run(encoder_run).options()
    from backdrift.train.loop import train
    from backdrift.train.stop import Stopped

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises((Stopped, KeyboardInterrupt)):
        train(pictures, options, run=tmp_path / "run", on_progress=stop)
    train(pictures, options, run=tmp_path / "run")
    whole, parts = (bd.load_encoder(folder).state_dict() for folder in (encoder_run, tmp_path / "run"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_options_that_an_encoder_does_not_use_are_refused(refused, tmp_path):
    words = ("train", "--task", "encoder", "--run", tmp_path / "run")
    assert "An encoder does not use --target" in refused(*words, "--target", "eps")
    assert "does not use the options of a network" in refused(*words, "--unet.width", 16)
    assert "of another task" in refused("train", "--encoder.size", 3, "--run", tmp_path / "run")
