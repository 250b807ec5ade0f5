"""Measured pictures in and out: nothing cut to 8 bits, units kept."""

import numpy as np
import pytest
import torch
from PIL import Image

from backdrift import UserError
from backdrift.data.values import HOUNSFIELD, Window, read_values, write_values


def test_sixteen_bits_survive(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        found = read_values(tmp_path / name)
        assert found.full == Window(0, 65535) and found.data.shape == (1, 5, 7)
        assert (found.data[0].numpy() == values).all()
    write_values(found.data, tmp_path / "b.png")
    assert (read_values(tmp_path / "b.png").data == found.data).all()
    colour = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "c.png")
    found = read_values(tmp_path / "c.png")
    assert found.full == Window(0, 255) and (found.data.numpy() == colour.transpose(2, 0, 1)).all()


def test_floats_and_pages_of_a_tiff_and_arrays(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    pages = [Image.fromarray(page) for page in values]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert (read_values(tmp_path / "a.tif").data[0].numpy() == values[1]).all()  # the middle one
    assert (read_values(tmp_path / "a.tif", 2).data[0].numpy() == values[2]).all()
    with pytest.raises(UserError, match="slices 0 to 2"):
        read_values(tmp_path / "a.tif", 3)
    for name in ("b.npy", "b.tif"):
        write_values(torch.from_numpy(values[:1]), tmp_path / name)
        found = read_values(tmp_path / name)
        assert found.full is None and (found.data.numpy() == values[:1]).all()


def test_windows_go_both_ways():
    soft = HOUNSFIELD["soft"]
    x = torch.tensor([-160.0, 40.0, 240.0, 1000.0])
    torch.testing.assert_close(soft.inside(x), torch.tensor([-1.0, 0.0, 1.0, 4.8]))
    torch.testing.assert_close(soft.restore(soft.inside(x)), x)
    assert soft.scale == 200
    with pytest.raises(UserError, match="lower value"):
        Window(2.0, 1.0)


@pytest.mark.interop
def test_nifti_and_dicom(tmp_path):
    nibabel, pydicom = pytest.importorskip("nibabel"), pytest.importorskip("pydicom")
    volume = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32) * 100
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    found = read_values(tmp_path / "a.nii.gz", 2).data
    assert (found[0].numpy() == volume[:, :, 2].T[::-1]).all()
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm")
    data = pydicom.dcmread(path)
    found = read_values(path).data[0].numpy()
    assert (found == data.pixel_array.astype(np.float32) * data.RescaleSlope + data.RescaleIntercept).all()
    assert -1100 < found.min() < -700  # air


def test_mistakes(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "a.jpg").write_text("")
    (tmp_path / "a.csv.gz").write_text("")
    (tmp_path / "a.nii").write_text("")
    np.save(tmp_path / "nan.npy", np.array([1.0, np.nan]))
    np.save(tmp_path / "word.npy", np.array(["a"]))
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    for name, words in (
        ("none.npy", "no file"),
        ("a.png", "cannot be read"),
        ("a.jpg", "no format"),
        ("a.csv.gz", "compressed"),
        ("a.nii", "backdrift\\[medical\\]"),
        ("nan.npy", "missing values"),
        ("word.npy", "not numbers"),
    ):
        with pytest.raises(UserError, match=words):
            read_values(tmp_path / name)
    with pytest.raises(UserError, match="outside 0"):
        write_values(torch.tensor([[[-1.0]]]), tmp_path / "b.png")
    with pytest.raises(UserError, match="one grey"):
        write_values(torch.zeros(3, 2, 2), tmp_path / "b.tif")
