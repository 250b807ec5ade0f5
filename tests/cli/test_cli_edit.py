"""`backdrift edit`: the sheet that it writes, and one sentence for each mistake."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "in.png")
    mask = np.full((8, 8), 255, np.uint8)
    mask[:, 5:] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:4]).save(tmp_path / "low.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def tile(path, i):
    """Picture i of a sheet with one row of 8 x 8 pictures, enlarged 8 times with gaps of 2."""
    return np.asarray(Image.open(path).convert("L"))[::8, 66 * i : 66 * i + 64 : 8]


def test_inpainting_keeps_what_is_kept(cli, digits_run, files):
    out = files / "sheet.png"
    words = ("--image", files / "in.png", "--mask", files / "mask.png", "--n", 3, "--steps", 6, "--rounds", 2)
    assert cli("edit", digits_run, *words, "--label", 3, "--out", out).status == 0
    picture = np.asarray(Image.open(files / "in.png"))
    assert (tile(out, 0) == picture).all() and (tile(out, 1) == np.asarray(Image.open(files / "mask.png"))).all()
    made = [tile(out, i) for i in (2, 3, 4)]
    assert all((one[:, :5] == picture[:, :5]).all() for one in made)
    assert (made[0] != made[1]).any() and (made[0][:, 5:] != picture[:, 5:]).any()


def test_weak_edits_stay_near_and_zero_variation_returns(cli, digits_run, files):
    out, picture = files / "sheet.png", np.asarray(Image.open(files / "in.png")).astype(int)
    image = ("--image", files / "in.png", "--out", out, "--n", 1)
    gaps = []
    for strength in (0.02, 0.9):
        assert cli("edit", digits_run, *image, "--strength", strength).status == 0
        gaps.append(np.abs(tile(out, 1).astype(int) - picture).mean())
    assert gaps[0] < 10 < gaps[1]
    assert cli("edit", digits_run, *image, "--vary", 0).status == 0
    assert np.abs(tile(out, 1).astype(int) - picture).mean() < 2


def test_an_enlarged_picture_has_the_averages_of_the_small_one(cli, refused, digits_run, files):
    small = np.array([[0, 60], [130, 255]], np.uint8).repeat(2, 0).repeat(2, 1)
    Image.fromarray(small).save(files / "small.png")
    out, words = files / "sheet.png", ("edit", digits_run, "--image", files / "small.png", "--enlarge", 2)
    assert cli(*words, "--n", 2, "--steps", 4, "--label", 3, "--out", out).status == 0
    assert (tile(out, 0) == small.repeat(2, 0).repeat(2, 1)).all()
    assert (tile(out, 1) != tile(out, 2)).any()
    assert "3 times smaller" in refused(*words[:-1], 3)
    assert "4 x 4" in refused("edit", digits_run, "--image", files / "in.png", "--enlarge", 2)
    assert "different edits" in refused(*words, "--mask", files / "mask.png")


def test_enlarging_keeps_the_averages(digits_run):
    import torch

    import backdrift as bd
    from backdrift.cli.edit import Edit, enlarged

    small = torch.linspace(-1, 1, 16).view(1, 4, 4)
    made = enlarged(Edit(digits_run, digits_run, n=3, steps=3, enlarge=2), bd.load(digits_run), small)
    averages = torch.nn.functional.avg_pool2d(made, 2)
    torch.testing.assert_close(averages, small.expand(3, 1, 4, 4), atol=1e-5, rtol=0)


def test_relabelling_to_the_same_label_returns(cli, digits_run, files):
    out, picture = files / "sheet.png", np.asarray(Image.open(files / "in.png")).astype(int)
    words = ("--image", files / "in.png", "--before", 4, "--label", 4, "--n", 2, "--out", out)
    assert cli("edit", digits_run, *words).status == 0
    assert all(np.abs(tile(out, i).astype(int) - picture).mean() < 2 for i in (1, 2))


def test_the_way_to_another_picture_ends_there(cli, digits_run, files):
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(files / "other.png")
    out = files / "sheet.png"
    words = ("--image", files / "in.png", "--to", files / "other.png", "--n", 3, "--out", out)
    assert cli("edit", digits_run, *words).status == 0
    here, there = (np.asarray(Image.open(files / name)).astype(int) for name in ("in.png", "other.png"))
    first, middle, last = (tile(out, i).astype(int) for i in (1, 2, 3))
    assert np.abs(first - here).mean() < 2 and np.abs(last - there).mean() < 2
    assert np.abs(middle - here).mean() > 5 and np.abs(middle - there).mean() > 5


@pytest.mark.parametrize("how", [("--strength", 0.5), ("--vary", 0.4, "--strength", 0.6), ("--mask", "mask.png")])
def test_a_result_is_the_same_in_any_company(cli, digits_run, files, monkeypatch, how):
    monkeypatch.chdir(files)
    many = ("--image", "in.png", *how, "--steps", 4, "--n", 4, "--out", "many.png")
    one = ("--image", "in.png", *how, "--steps", 4, "--index", 2, "--out", "one.png")
    assert cli("edit", digits_run, *many).status == cli("edit", digits_run, *one).status == 0
    first = 2 if "--mask" in how else 1
    alone, among = tile("one.png", first).astype(int), tile("many.png", first + 2).astype(int)
    assert np.abs(alone - among).max() <= 1
    assert (among != tile("many.png", first + 1)).any()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--image", "gone.png"), "There is no picture"),
        (("--image", "text.png"), "cannot be read as a picture"),
        (("--image", "low.png"), "8 x 4 pixels"),
        (("--image", "in.png", "--mask", "low.png"), "8 x 4 pixels"),
        (("--image", "in.png", "--strength", "1.5"), "strength"),
        (("--image", "in.png", "--rounds", "2"), "belong to a --mask"),
        (("--image", "in.png", "--mask", "mask.png", "--vary", "0.2"), "choose one"),
        (("--image", "in.png", "--before", "1", "--label", "2", "--strength", "0.2"), "leave one"),
        (("--image", "in.png", "--index"), "numbers from 0"),
        (("--image", "in.png", "--to", "low.png"), "8 x 4 pixels"),
        (("--image", "in.png", "--to", "in.png", "--n", "1"), "at least 2"),
        (("--image", "in.png", "--label", "3", "--guidance", "nan"), "A guidance weight is 0"),
        (("--image", "in.png", "--before", "1"), "add --label"),
        (("--image", "in.png", "--label", "12"), "no label"),
        (("--image", "in.png", "--n", "0"), "at least one"),
        (("--image", "in.png", "--guidance", "2"), "needs a condition"),
    ],
)
def test_mistakes(refused, digits_run, files, monkeypatch, words, sentence):
    monkeypatch.chdir(files)
    assert sentence in refused("edit", digits_run, *words)
