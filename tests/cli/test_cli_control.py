"""Runs that stand on a run, or follow a picture, as their user meets them: trained, sampled, edited, refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import backdrift as bd
from backdrift.adapter import adapt
from backdrift.data import digits, save_pictures
from backdrift.edit import fill
from backdrift.train.checkpoint import checksum
from backdrift.train.onto import weights_of
from command import NET

FEW = (
    "--steps",
    3,
    "--batch",
    8,
    "--checkpoint-every",
    0,
    "--sample-every",
    0,
    "--snapshots",
    0,
    "--precision",
    "fp32",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits_run):
    """Runs of a few steps: control, adapter, inpainting; not to be changed."""
    from backdrift.cli import main

    folder = tmp_path_factory.mktemp("standing")
    tasks = {
        "control": ("--from", digits_run, "--control.hint", "edges", "--control.threshold", 0.4),
        "adapter": ("--from", digits_run, "--adapter.rank", 2),
        "inpainting": NET,
    }
    for name, words in tasks.items():
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in ("train", "--task", name, "--run", folder / name, *words, *FEW)])
        assert ended.value.code == 0, name
    return folder


@pytest.fixture
def picture(tmp_path):
    save_pictures(digits().tensor(torch.tensor([5])), tmp_path)
    return next(tmp_path.glob("*.png"))


def test_a_control_run_holds_its_base_bit_for_bit_and_begins_as_it(runs, digits_run, cli):
    base, kept = weights_of(digits_run), weights_of(runs / "control")
    assert all(value.equal(kept[f"base.{name}"]) for name, value in base.items())
    model, plain = bd.load(runs / "control"), bd.load(digits_run)
    assert model.sample(4, steps=3, label=3).equal(plain.sample(4, steps=3, label=3))
    hint = model.hint(digits().tensor(torch.arange(4)))
    assert hint["edges"].shape == (4, 1, 8, 8)
    followed = model.sample(4, steps=3, label=3, control=hint["edges"])
    assert float((followed - plain.sample(4, steps=3, label=3)).abs().max()) > 1e-6
    one = model.sample(index=[2], steps=3, label=3, control=hint["edges"][2])
    torch.testing.assert_close(one[0], followed[2], atol=1e-5, rtol=0)
    rows = json.loads((runs / "control" / "control.json").read_text())["rows"]
    assert [row["measure"] for row in rows] == ["F1 of edges"] and rows[0]["n"] == 174
    assert "F1 of edges" in (runs / "control" / "report.html").read_text()


def test_pictures_are_followed_from_the_command_line(runs, cli, picture, tmp_path, refused, digits_run):
    sheet = tmp_path / "out.png"
    assert cli("sample", runs / "control", "--control", picture, "--n", 4, "--steps", 2, "--out", sheet).status == 0
    assert cli("sample", runs / "control", "--hint", picture, "--n", 2, "--steps", 2, "--out", sheet).status == 0
    guided = ("--label", 3, "--guidance", 2, "--interval", 0.2, 5)
    words = ("sample", runs / "control", "--control", picture, "--n", 2, "--steps", 2, "--out", sheet)
    assert cli(*words, *guided).status == 0
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "large.png")
    assert "8 x 9" in refused("sample", runs / "control", "--control", tmp_path / "large.png")
    assert "not trained to follow" in refused("sample", digits_run, "--control", picture)
    assert "not trained to follow" in refused("sample", digits_run, "--hint", picture)
    assert "several pictures" in refused("sample", runs / "inpainting", "--hint", picture)
    model = bd.load(runs / "control")
    with pytest.raises(bd.errors.UserError, match="1 x 8 x 8"):
        model.sample(2, control=torch.zeros(1, 9, 8))
    with pytest.raises(bd.errors.UserError, match="no 'depth'"):
        model.sample(2, control={"depth": torch.zeros(1, 8, 8)})


def test_an_adapter_is_kept_apart_and_goes_onto_its_base_at_any_strength(runs, digits_run, cli, tmp_path, refused):
    before = checksum(weights_of(digits_run))
    small, whole = ((folder / "model.safetensors").stat().st_size for folder in (runs / "adapter", digits_run))
    assert small < whole / 2
    base, loaded = bd.load(digits_run), bd.load(runs / "adapter")
    full = adapt(base, runs / "adapter")
    torch.testing.assert_close(full.sample(3, steps=3, label=1), loaded.sample(3, steps=3, label=1), atol=1e-5, rtol=0)
    assert adapt(base, runs / "adapter", 0.0).sample(3, steps=3).equal(base.sample(3, steps=3))
    assert not full.sample(3, steps=3).equal(base.sample(3, steps=3))
    assert checksum(weights_of(digits_run)) == before
    words = ("sample", digits_run, "--adapter", runs / "adapter", "--n", 2, "--steps", 2)
    assert cli(*words, "--strength", 0.7, "--out", tmp_path / "a.png").status == 0
    assert cli("sample", runs / "adapter", "--n", 2, "--steps", 2, "--out", tmp_path / "b.png").status == 0
    assert "another base" in refused("sample", runs / "inpainting", *words[2:])
    assert "no adapter" in refused("sample", digits_run, "--adapter", digits_run)
    assert "--adapter" in refused("sample", digits_run, "--strength", 0.5)


def test_a_run_trained_for_it_fills_in(runs, cli, picture, tmp_path, refused, digits_run):
    mask = torch.ones(8, 8)
    mask[2:6, 3:] = 0
    Image.fromarray((255 * mask).byte().numpy()).save(tmp_path / "mask.png")
    words = ("--image", picture, "--mask", tmp_path / "mask.png", "--n", 2, "--steps", 2, "--out", tmp_path / "o.png")
    assert cli("edit", runs / "inpainting", *words, "--label", 3, "--guidance", 1.5).status == 0
    assert "full strength" in refused("edit", runs / "inpainting", *words, "--strength", 0.5)
    model, x0 = bd.load(runs / "inpainting"), digits().tensor(torch.arange(5))
    made = fill(model.denoiser, x0, mask, steps=3)
    assert made[:, :, mask > 0].equal(x0[:, :, mask > 0]) and not made.equal(x0)
    # what is unknown does not matter
    other = torch.where(mask > 0, x0, torch.rand_like(x0))
    assert fill(model.denoiser, other, mask, steps=3).equal(made)
    with pytest.raises(bd.errors.UserError, match="7 x 8"):
        fill(model.denoiser, x0, mask[:, :7])
    with pytest.raises(bd.errors.UserError, match="not trained to fill"):
        fill(bd.load(digits_run).denoiser, x0, mask)


def test_what_does_not_suit_a_base_is_refused(refused, digits_run, tmp_path, photos):
    def train(task, *words):
        return refused("train", "--task", task, "--run", tmp_path / "new", *words, *FEW)

    assert "--from" in train("control") and "--from" in train("adapter")
    assert "leave out --target" in train("control", "--from", digits_run, "--target", "v")
    assert "3 x 8 x 8" in train("adapter", "--from", digits_run, "--data", photos)
    grey = ("--data", photos, "--pictures.channels", 1)
    assert "no class 'cat'" in train("adapter", "--from", digits_run, *grey)
    assert "for masks" in train("control", "--from", digits_run, "--control.hint", "knownpixels")
    assert "no derived 'edge'" in train("control", "--from", digits_run, "--control.hint", "edge")
    assert "--control.regions" in train("control", "--from", digits_run, "--control.regions", 4)
