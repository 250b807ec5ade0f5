"""NumPy files: what is understood, and what is refused as ambiguous."""

import numpy as np
import pytest

import backdrift.data as data
from backdrift.errors import UserError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def read(tmp_path, array, **arrays):
    path = tmp_path / ("a.npz" if arrays else "a.npy")
    np.savez(path, images=array, **arrays) if arrays else np.save(path, array)
    return data.pictures(path)


@pytest.mark.parametrize("channels_first", [True, False])
def test_layouts(tmp_path, channels_first):
    found = read(tmp_path, BYTES.transpose(0, 3, 1, 2) if channels_first else BYTES)
    assert np.array_equal(found.pixels.numpy(), BYTES.transpose(0, 3, 1, 2))
    assert ("(N, C, H, W)" if channels_first else "(N, H, W, C)") in found.source["assumed"]
    assert data.load(found.source).fingerprint == found.fingerprint


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 1, 6, 7), (5, 6, 7, 1)])
def test_grey(tmp_path, shape):
    found = read(tmp_path, BYTES[..., 0].reshape(shape))
    assert np.array_equal(found.pixels.numpy()[:, 0], BYTES[..., 0])


def test_floats(tmp_path):
    unit = read(tmp_path, (BYTES / 255).astype(np.float32))
    both = read(tmp_path, BYTES / 127.5 - 1)
    for found, words in ((unit, "[0, 1]"), (both, "[-1, 1]")):
        assert np.array_equal(found.pixels.numpy(), BYTES.transpose(0, 3, 1, 2))
        assert words in found.source["assumed"]


def test_transparent_arrays(tmp_path):
    array = np.concatenate([BYTES, np.zeros_like(BYTES[..., :1])], axis=-1)
    array[0, 0, 0, 3] = 255
    found = read(tmp_path, array).pixels.numpy()
    assert np.array_equal(found[0, :, 0, 0], BYTES[0, 0, 0])
    assert (found[1] == 255).all()


@pytest.mark.parametrize("name", ["images", "x", "arr_0"])
def test_names_in_npz(tmp_path, name):
    np.savez(tmp_path / "a.npz", **{name: BYTES, "other": np.zeros(3)})
    assert len(data.pictures(tmp_path / "a.npz")) == 5


@pytest.mark.parametrize("name", ["labels", "y"])
def test_labels(tmp_path, name):
    found = read(tmp_path, BYTES, **{name: np.array([[1], [0], [2], [1], [1]], dtype=np.uint8)})
    assert found.labels.tolist() == [1, 0, 2, 1, 1] and found.classes == ("0", "1", "2")


def test_named_classes_may_be_absent(tmp_path):
    found = read(tmp_path, BYTES, y=np.array([2, 0, 2, 2, 2]), classes=np.array(["cat", "cow", "dog"]))
    assert found.classes == ("cat", "cow", "dog") and found.labels.tolist() == [2, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0, 1], "one label each"),
        ([0.0, 1.0, 0.0, 1.0, 0.0], "must be integers"),
        ([0, 1, -1, 1, 0], "-1 .*out of range"),
        ([1, 2, 1, 2, 3], "none is 0"),
        ([0, 1, 3, 1, 0], "none is 2"),
        (np.eye(5, dtype=int), "one label each"),
    ],
)
def test_bad_labels_are_refused(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, BYTES, y=np.array(labels))


def test_labels_beyond_the_named_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"3 .*out of range; labels must be 0 to 1"):
        read(tmp_path, BYTES, y=np.array([0, 1, 0, 1, 3]), classes=np.array(["a", "b"]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (BYTES.astype(float), "floats from 0 to 255"),
        (BYTES / 100 - 1.5, "must lie in"),
        (np.where(BYTES == 0, np.nan, BYTES / 255), "must lie in"),
        (BYTES.astype(np.int64), "holds int64"),
        (BYTES % 2, "0 and 1 only"),
        (BYTES[0], "could be a single picture"),
        (BYTES[0].transpose(2, 0, 1), "could be a single picture"),
        (BYTES[:, 0, 0], "shape"),
        (BYTES[:, :3], "either of the axes"),
        (BYTES[:, :, :, [0, 0]], "neither of the axes"),
        (BYTES[:0], "shape"),
        (BYTES[:1], "only one picture"),
        (np.array([None, {}]), "not a readable NumPy file"),
    ],
)
def test_ambiguous_arrays_are_refused(tmp_path, array, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, array)


def test_damaged_files_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", BYTES)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    np.savez(tmp_path / "b.npz", x=BYTES)
    (tmp_path / "b.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:200])
    (tmp_path / "c.npy").write_bytes(b"")
    np.savez(tmp_path / "d.npz", pictures=BYTES)
    for name, message in (("a.npy", "not a readable"), ("b.npz", "not a r"), ("c.npy", "not a r"), ("d.npz", "called")):
        with pytest.raises(UserError, match=message):
            data.pictures(tmp_path / name)
