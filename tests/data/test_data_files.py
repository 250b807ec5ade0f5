"""Tensors out to PNG files and back."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import backdrift.data as data
from backdrift.errors import UserError


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-5.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.0, 1.0, 9.0])
    assert data.to_uint8(x).tolist() == [0, 0, 0, 1, 128, 255, 255]
    with pytest.raises(UserError, match="NaN"):
        data.to_uint8(torch.tensor([0.0, float("nan")]))


def test_grid_places_each_picture(tmp_path):
    x = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 3, 2, 3)
    data.save_grid(x, tmp_path / "g.png", columns=2, upscale=3)
    found = np.asarray(Image.open(tmp_path / "g.png"))
    assert found.shape == (3 * 6 + 2 * 2, 2 * 9 + 2, 3)
    expected = np.full(found.shape, 128)
    for i, value in enumerate((0, 64, 128, 191, 255)):
        top, left = i // 2 * 8, i % 2 * 11
        expected[top : top + 6, left : left + 9] = value
    assert np.array_equal(found, expected)


def test_grid_defaults_make_digits_visible_and_square():
    x = data.digits().tensor(slice(0, 9))
    found = np.asarray(Image.open(io.BytesIO(data.grid_png(x))))
    assert found.shape == (3 * 64 + 4, 3 * 64 + 4)
    assert np.array_equal(found[:64:8, :64:8], data.digits().pixels[0, 0].numpy())
    assert np.asarray(Image.open(io.BytesIO(data.grid_png(torch.zeros(1, 1, 100, 90))))).shape == (100, 90)


def test_saved_pictures_come_back_as_they_were(tmp_path):
    whole = data.digits()
    data.save_pictures(whole.tensor(slice(0, 3)), tmp_path / "out")
    paths = data.save_pictures(whole.tensor(slice(3, 6)), tmp_path / "out", start=1000003)
    assert [path.name for path in paths] == ["1000003.png", "1000004.png", "1000005.png"]
    assert data.saved_numbers(tmp_path / "out") == {0, 1, 2, 1000003, 1000004, 1000005}
    assert torch.equal(data.pictures(tmp_path / "out").pixels, whole.pixels[:6])
    assert data.saved_numbers(tmp_path / "none") == set()


def test_colour_survives(tmp_path):
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data.save_pictures(x, tmp_path)
    assert torch.equal(data.pictures(tmp_path).pixels, data.to_uint8(x))


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="disk is full"):
        data.save_pictures(torch.zeros(1, 1, 2, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_picture_is_refused(tmp_path):
    for x in (torch.zeros(3, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(0, 1, 4, 4)):
        with pytest.raises(UserError):
            data.save_grid(x, tmp_path / "g.png")
    with pytest.raises(UserError, match=r"\.png"):
        data.save_grid(torch.zeros(1, 1, 4, 4), tmp_path / "g.txt")
    with pytest.raises(UserError):
        data.save_pictures(torch.zeros(1, 2, 4, 4), tmp_path)
