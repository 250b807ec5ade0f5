"""`backdrift train --task encoder` from end to end."""

import json

import pytest
import torch

import backdrift as bd
from backdrift.run import Run, load_network

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
    run = Run(folder / "pictures")
    network = load_network(run.folder)
    with torch.no_grad():  # after 4 steps it hardly listens
        network.net.conditioning.exit.weight.normal_(generator=torch.Generator().manual_seed(0))
    run.save_model(network.net, run.config(), 4)
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


def test_samples_like_a_picture_are_those_of_its_representation(cli, refused, both_runs, digits_run, tmp_path):
    from backdrift.represent import representation_of

    pictures = bd.data.digits()
    bd.data.save_pictures(pictures.tensor([0, 1]), tmp_path / "of")
    files = sorted((tmp_path / "of").iterdir())
    out = tmp_path / "like.png"
    words = ("--steps", 4, "--out", out)
    assert cli("sample", both_runs[0], "--like", *files, "--index", 1, *words).status == 0
    model = bd.load(both_runs[0])
    told = representation_of(model.denoiser, pictures.tensor([1]))
    same = model.sample(index=[1], cond={"representation": told}, steps=4)
    torch.testing.assert_close(
        bd.data.read_picture(out, (1, 64, 64))[:, ::8, ::8], same[0].clamp(-1, 1), atol=0.01, rtol=0
    )
    edited = ("edit", both_runs[0], "--image", files[0], "--n", 2, *words)
    assert cli(*edited, "--like", files[1]).status == 0
    alike = out.read_bytes()
    assert cli(*edited).status == 0 and out.read_bytes() != alike
    assert "told what a picture shows" in refused("sample", digits_run, "--like", files[0])
    assert "give one of them" in refused("sample", both_runs[0], "--like", files[0], "--prior", both_runs[1])


def test_directions_are_shown(cli, refused, both_runs, digits_run, tmp_path):
    out = tmp_path / "directions.png"
    words = ("directions", both_runs[0], "--out", out, "--steps", 2)
    told = cli(*words, "--n", 2, "--columns", 3)
    assert told.status == 0 and "direction 2:" in told.out and "path length" in told.out
    bd.data.read_picture(out, (1, 2 * 66 - 2, 4 * 66 - 2))
    bd.data.save_pictures(bd.data.digits().tensor([0, 1]), tmp_path / "of")
    first, second = sorted((tmp_path / "of").iterdir())
    assert "3 pictures on the way" in cli(*words, "--n", 3, "--image", first, "--to", second).out
    assert "add --image" in refused(*words, "--to", second)
    assert "told what a picture shows" in refused("directions", digits_run)
