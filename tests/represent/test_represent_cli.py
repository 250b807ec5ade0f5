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


UNET = (
    "--unet.width",
    16,
    "--unet.multipliers",
    1,
    2,
    "--unet.blocks",
    1,
    "--unet.attention",
    1,
    "--precision",
    "fp32",
)
SHORT = ("--steps", 4, "--batch", 16, "--sample-every", 0, "--snapshots", 0)


@pytest.fixture(scope="module")
def both_runs(tmp_path_factory, encoder_run):
    """A model that is told representations, and a prior of them."""
    from backdrift.cli import main

    folder = tmp_path_factory.mktemp("two stages")
    for words in (
        ("--task", "represented", "--from", encoder_run, "--run", folder / "pictures", *UNET, *SHORT),
        ("--task", "prior", "--prior.of", folder / "pictures", "--run", folder / "prior", "--prior.width", 32, *SHORT),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["train", *map(str, words)])
        assert ended.value.code == 0
    return folder / "pictures", folder / "prior"


def test_a_run_holds_its_encoder_untouched(both_runs, encoder_run):
    from backdrift.represent import representation_of

    x = bd.data.digits().tensor([5, 6])
    told = representation_of(bd.load(both_runs[0]).denoiser, x)
    assert torch.equal(told, bd.load_encoder(encoder_run)(x))
    assert (both_runs[0] / "samples" / "likeness.png").exists()


def test_both_stages_sample_the_same_pictures_in_any_batch(cli, both_runs, tmp_path):
    from backdrift.represent import draw

    model, prior = (bd.load(run) for run in both_runs)
    assert prior.sample(3, label=1, steps=4).shape == (3, 8)
    whole = draw(prior, model, 5, seed=3, steps=4)
    out = tmp_path / "one.png"
    words = ("sample", both_runs[0], "--prior", both_runs[1], "--index", 3, "--seed", 3, "--steps", 4)
    assert cli(*words, "--out", out).status == 0
    shown = bd.data.read_picture(out, (1, 64, 64))[:, ::8, ::8]
    torch.testing.assert_close(shown, whole[3].clamp(-1, 1), atol=1 / 127, rtol=0)


def test_a_prior_goes_on_and_knows_when_it_is_finished(cli, both_runs):
    words = ("--task", "prior", "--prior.of", both_runs[0], "--run", both_runs[1], "--prior.width", 32, *SHORT)
    assert "finished" in cli("train", *words).err


def test_stages_that_do_not_fit_are_refused(refused, both_runs, digits_run, encoder_run, tmp_path):
    run = ("--run", tmp_path / "run")
    assert "add --from RUN" in refused("train", "--task", "represented", *run)
    assert "holds no encoder" in refused("train", "--task", "represented", "--from", digits_run, *run)
    assert "add --prior.of RUN" in refused("train", "--task", "prior", *run)
    assert "told what a picture shows" in refused("train", "--task", "prior", "--prior.of", digits_run, *run)
    assert "cannot be mirrored" in refused(
        "train", "--task", "prior", "--prior.of", encoder_run, "--flip", "True", *run
    )
    assert "told what a picture shows" in refused("sample", digits_run, "--prior", both_runs[1])
    assert "not of one encoder" in refused("sample", both_runs[0], "--prior", digits_run)
