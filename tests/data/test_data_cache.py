"""A cache holds the same pictures as memory does, is made once, and notices when its source has changed."""

import json
import os
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from backdrift import data
from backdrift.data import cache
from backdrift.data.cache import Rows
from backdrift.errors import UserError


def homes(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def count(monkeypatch):
    """A list that grows with every cache that is built."""
    made, make = [], cache._make
    monkeypatch.setattr(cache, "_make", lambda *words: (made.append(1), make(*words)))
    return made


def same(mapped, plain):
    assert isinstance(mapped.pixels, Rows) and torch.equal(mapped.pixels[:], plain.pixels)
    assert mapped.shape == plain.shape and mapped.names == plain.names and mapped.fingerprint == plain.fingerprint
    assert torch.equal(mapped.labels, plain.labels) and (mapped.std, mapped.radius) == (plain.std, plain.radius)


def test_mapped_pictures_are_those_in_memory(photos, tmp_path):
    plain, mapped = data.pictures(photos), data.pictures(photos, cache=tmp_path / "cache")
    same(mapped, plain)
    for mine, theirs in zip(mapped.split(), plain.split(), strict=True):
        same(mine, theirs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a tensor on read-only memory would warn
            assert torch.equal(mine.tensor([1, 0]), theirs.tensor([1, 0])) and torch.equal(
                mine.tensor(), theirs.tensor()
            )
    part = mapped.subset(slice(3, 9)).subset([4, 0])
    same(part, plain.subset(slice(3, 9)).subset([4, 0]))
    # what is known of a part is what a census of the part finds
    assert replace(part, census=None).fingerprint == part.fingerprint and replace(part, census=None).std == part.std
    changed = part.tensor([0]).zero_()
    assert not torch.equal(changed, part.tensor([0]))  # a batch is a copy


@pytest.mark.parametrize("grey, channels", [(True, None), (False, None), (False, 1), (True, 3)])
def test_channels_and_broken_pictures(photos, tmp_path, grey, channels):
    if grey:
        for path in photos.rglob("*.png"):
            with Image.open(path) as picture:
                converted = picture.convert("L")
            converted.save(path)
    (photos / "cat" / "00.png").write_bytes(b"torn")
    how = {"channels": channels, "skip_broken": True}
    plain, mapped = (data.pictures(photos, cache=folder, **how) for folder in (None, tmp_path / "cache"))
    same(mapped, plain)
    assert len(plain) == 24 and plain.shape[0] == (channels or (1 if grey else 3))
    (home,) = homes(tmp_path / "cache")
    assert len(list(home.glob("pixels-*.npy"))) == 1
    with pytest.raises(UserError, match=r"00\.png is broken"):
        data.pictures(photos, cache=tmp_path / "other")
    assert homes(tmp_path / "other") == [] and not list((tmp_path / "other").glob(".building-*"))


def test_a_cache_is_made_once_and_again_where_its_source_changed(photos, tmp_path, monkeypatch):
    made, folder = count(monkeypatch), tmp_path / "cache"
    first = data.pictures(photos, cache=folder)
    again = data.load(first.source)
    assert len(made) == 1 and again.fingerprint == first.fingerprint and isinstance(again.pixels, Rows)
    data.pictures(photos, 4, cache=folder)
    data.pictures(photos, validation=0.3, cache=folder)  # does not change how a picture is read
    assert len(made) == 2 and len(homes(folder)) == 2
    before = {path.name for path in homes(folder)}
    os.utime(photos / "cat" / "3.png", ns=(1, 1))
    data.pictures(photos, cache=folder)
    assert len(made) == 3 and len(homes(folder)) == 2 and len(before & {path.name for path in homes(folder)}) == 1
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(photos / "cat" / "3.png")
    changed = data.pictures(photos, cache=folder)
    assert len(made) == 4 and changed.fingerprint == data.pictures(photos).fingerprint != first.fingerprint
    with pytest.raises(UserError, match="not those recorded"):
        data.load(first.source)
    shutil.move(photos / "cat" / "3.png", photos / "cat" / "x.png")
    assert "cat/x.png" in data.pictures(photos, cache=folder).names and len(made) == 5


@pytest.mark.parametrize("name", ["pixels-0.npy", "index.npz"])
def test_a_damaged_cache_is_named(photos, tmp_path, name):
    data.pictures(photos, cache=tmp_path / "cache")
    (home,) = homes(tmp_path / "cache")
    (home / name).write_bytes((home / name).read_bytes()[:150])
    with pytest.raises(UserError, match=f"The cache {home} is damaged .* remove that folder"):
        data.pictures(photos, cache=tmp_path / "cache")
    shutil.rmtree(home)
    assert len(data.pictures(photos, cache=tmp_path / "cache")) == 24


def test_what_a_killed_process_left_is_swept(photos, tmp_path):
    (tmp_path / "cache" / ".building-x").mkdir(parents=True)
    half = data.pictures(photos, cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / ".building-x").exists()
    (home,) = homes(tmp_path / "cache")
    (home / "about.json").unlink()  # someone removed a part
    assert data.pictures(photos, cache=tmp_path / "cache").fingerprint == half.fingerprint
    assert json.loads((home / "about.json").read_text())["path"] == str(photos)


def test_two_at_once_make_it_once(photos, tmp_path, monkeypatch):
    pytest.importorskip("fcntl")  # whose locks keep threads apart as they do processes
    made, make = count(monkeypatch), cache._make
    monkeypatch.setattr(cache, "_make", lambda *words: (time.sleep(0.2), make(*words)))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: data.pictures(photos, cache=tmp_path / "cache"), range(2)))
    assert len(made) == 1
    for mapped in found:
        same(mapped, data.pictures(photos))


def test_a_folder_that_cannot_be_written(photos, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"The cache in .* cannot be written"):
        data.pictures(photos, cache=tmp_path / "file" / "cache")
