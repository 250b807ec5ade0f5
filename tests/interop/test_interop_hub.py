"""What is published of a run is enough to sample, and tells nothing of the machine."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import backdrift as bd
from backdrift.interop.hub import without_paths


@pytest.fixture
def saved(digits_run, tmp_path):
    return bd.load(digits_run, device="cpu").save_pretrained(tmp_path / "public")


def test_saved_and_loaded(digits_run, saved):
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again, model = bd.Model.from_pretrained(saved, device="cpu"), bd.load(digits_run, device="cpu")
    assert torch.equal(again.sample(2, label=3, steps=2), model.sample(2, label=3, steps=2))
    # the file alone is enough too, and a second call writes over the first
    alone = bd.load(saved / "model.safetensors", device="cpu")
    assert torch.equal(alone.sample(2, steps=2), model.sample(2, steps=2))
    model.save_pretrained(saved)
    card = (saved / "README.md").read_text()
    assert "| pictures | 1 x 8 x 8, 10 classes |" in card and "bd.Model.from_pretrained" in card
    assert "library_name: backdrift" in card and "8 steps of 8 pictures" in card


def test_no_path_of_the_machine_is_published(digits_run, saved):
    config = {"data": {"source": {"kind": "split", "of": {"path": "/home/me/photos"}}}, "command": ["--data", "/a/b"]}
    config |= {"start_from": "/home/me/runs/x", "options": {"net": {"path": "/home/me/net.py"}, "path": None}}
    assert without_paths(config) == {
        "data": {"source": {"kind": "split", "of": {"path": "photos"}}},
        "command": ["--data", "b"],
        "start_from": "x",
        "options": {"net": {"path": "net.py"}, "path": None},
    }
    for file in saved.iterdir():
        assert str(digits_run.parent).encode() not in file.read_bytes(), file


def test_pushed_and_fetched(digits_run, tmp_path, monkeypatch):
    """With a stand-in for the hub that keeps what it gets in a folder."""
    store = tmp_path / "store"

    class HfApi:
        def create_repo(self, name, private, exist_ok):
            assert private and exist_ok
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            Path(folder_path).rename(store)

    def snapshot_download(name, allow_patterns, ignore_patterns):
        if name != "me/digits":
            raise OSError("404 not found\nand more")
        return str(store)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    )
    model = bd.load(digits_run, device="cpu")
    assert model.push_to_hub("me/digits", private=True) == "https://hub/me/digits"
    again = bd.Model.from_pretrained("me/digits", device="cpu")
    assert torch.equal(again.sample(1, steps=2), model.sample(1, steps=2))
    with pytest.raises(bd.UserError, match=r"the hub does not give it: 404 not found\.$"):
        bd.Model.from_pretrained("me/other")
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **options: 1 / 0)
    with pytest.raises(bd.UserError, match="does not take me/digits: division by zero"):
        model.push_to_hub("me/digits")


def test_mistakes(digits_run, saved, monkeypatch):
    model = bd.load(digits_run, device="cpu")
    with pytest.raises(bd.UserError, match="is the run itself"):
        model.save_pretrained(digits_run)
    (saved / "letter.txt").write_text("dear")
    with pytest.raises(bd.UserError, match="it has letter"):
        model.save_pretrained(saved)
    with pytest.raises(bd.UserError, match="with a run folder"):
        bd.Model(model.denoiser).save_pretrained(saved)
    with pytest.raises(bd.UserError, match="There is no folder"):
        bd.Model.from_pretrained("no where")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(bd.UserError, match=r"backdrift\[hub\]"):
        model.push_to_hub("me/digits")


def test_plans_are_published(digits_run, tmp_path):
    import shutil

    run = shutil.copytree(digits_run, tmp_path / "run")
    model = bd.load(run, device="cpu")
    schedule = model.denoiser.process.schedule
    bd.solvers.DDIM().plan(schedule, [1.0, 0.0]).save(run / "plans" / "tuned-1.json")
    public = model.save_pretrained(tmp_path / "public")
    assert json.loads((public / "plans" / "tuned-1.json").read_text())["evaluations"] == 1
    assert bd.Model.from_pretrained(public, device="cpu").tuned_plan(1).evaluations == 1
