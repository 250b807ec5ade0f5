"""Pictures that cannot be trained on: one sentence that names the culprit, before training and before any file."""

import io
import shutil
import zipfile

import numpy as np
import pytest

from command import TINY, save_photos


@pytest.fixture
def no(refused, tmp_path):
    """no(data, *words): training on `data` is refused; returns the sentence."""

    def call(data, *words):
        sentence = refused("train", "--data", data, "--run", tmp_path / "run", *TINY, *words)
        assert not (tmp_path / "run").exists()
        return sentence

    return call


def test_missing_empty_and_single(no, tmp_path):
    assert f"There is no {tmp_path / 'nowhere'}" in no(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in no(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    assert str(tmp_path / "empty") in no(tmp_path / "empty")
    one = save_photos(tmp_path / "one", classes=("cat",), each=1)
    assert "holds only one picture" in no(one)
    assert "is a single picture" in no(one / "cat" / "0.png")


def test_broken_picture_is_named_and_skipped_only_on_request(cli, no, photos, tmp_path):
    broken = photos / "dog" / "5.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert "dog/5.png is broken" in no(photos)
    assert cli("train", "--data", photos, "--run", tmp_path / "run", *TINY, "--pictures.skip-broken").status == 0
    assert "dog/5.png" in (tmp_path / "run" / "config.json").read_text()


def test_mixed_sizes_need_a_policy(cli, no, photos, tmp_path):
    save_photos(photos / "wide", classes=("",), each=3, size=(12, 8))
    assert "12 by 8 while others are 8 by 8" in no(photos)
    assert "There is no fit 'crap' (did you mean crop?)" in no(photos, "--pictures.size", 8, "--pictures.fit", "crap")
    assert "needs a size" in no(photos, "--pictures.fit", "crop")
    words = ("--pictures.size", 8, "--pictures.fit", "crop")
    assert cli("train", "--data", photos, "--run", tmp_path / "run", *TINY, *words).status == 0


@pytest.mark.parametrize("labels, sentence", [((0, -1, 1, 0), "Label -1"), ((0, 1, 3, 0), "none is 2")])
def test_labels_out_of_range(no, tmp_path, labels, sentence):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.array(labels))
    sentence_said = no(tmp_path / "data.npz")
    assert sentence in sentence_said and "out of range" in sentence_said


def test_zip_that_climbs_out(no, tmp_path, photos):
    shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    with zipfile.ZipFile(tmp_path / "photos.zip", "a") as archive:
        archive.writestr("../../stolen.png", io.BytesIO(b"x").getvalue())
    assert "climbs out of it (../../stolen.png)" in no(tmp_path / "photos.zip")
    (tmp_path / "torn.zip").write_bytes((tmp_path / "photos.zip").read_bytes()[:500])
    assert "torn.zip is not a zip file" in no(tmp_path / "torn.zip")


def test_run_folder_that_holds_something_else(refused, photos):
    sentence = refused("train", "--run", photos, *TINY)
    assert "is not empty and holds no run" in sentence and "cat" in sentence
    assert "is a file" in refused("train", "--run", photos / "cat" / "0.png", *TINY)


def test_two_sets_of_different_shape(cli, refused, photos):
    assert "shapes (3, 8, 8) and (1, 8, 8)" in refused("evaluate", photos, "--against", "digits")
    status, out, _ = cli("evaluate", photos, "--against", photos)
    assert status == 0 and "FD (pixel PCA" in out
