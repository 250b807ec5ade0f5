"""What a crash, a full disk or an edited file leaves behind is noticed, said, and survived."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from backdrift.sample.solvers import Euler
from backdrift.schedule import VP
from command import TINY


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy that may be changed, under the same name as the original."""
    return shutil.copytree(digits_run, tmp_path / digits_run.name)


def checkpoints(run):
    return sorted((run / "checkpoints").glob("*.safetensors"))


def test_truncated_checkpoint_gives_way_to_the_one_before(cli, run):
    before = load_file(run / "model.safetensors")
    last = checkpoints(run)[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    status, _, err = cli("train", "--run", run, *TINY)
    assert status == 0 and f"The checkpoint {last.name} is damaged" in err and "the one before it is used" in err
    assert last.read_bytes() == whole  # trained again from step 4, to the same bits
    after = load_file(run / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_checkpoint_left(refused, run):
    for path in checkpoints(run):
        path.write_bytes(b"torn")
    assert "No checkpoint in" in refused("train", "--run", run, *TINY)


def test_truncated_model(refused, run):
    model = run / "model.safetensors"
    model.write_bytes(model.read_bytes()[:5000])
    assert "or it is damaged" in refused("sample", run)
    model.unlink()
    assert "has not reached its first checkpoint" in refused("sample", run)


def test_config_that_does_not_fit(refused, run):
    config = json.loads((run / "config.json").read_text())
    config["options"]["net"]["width"] = 32
    (run / "config.json").write_text(json.dumps(config))
    assert "does not fit its config" in refused("sample", run, "--n", 2)
    widened = ["32" if word == 16 else word for word in TINY]
    assert "does not fit the network of this config" in refused("train", "--run", run, *widened)
    (run / "config.json").write_text("{")
    assert "damaged" in refused("info", run)


def test_another_command_for_the_same_run(refused, run):
    assert "holds a run with lr = 0.001, and now it is 0.01" in refused("train", "--run", run, *TINY, "--lr", 0.01)


def test_weights_of_another_network(refused, run, tmp_path):
    wider = ["32" if word == 16 else word for word in TINY]
    sentence = refused("train", "--run", tmp_path / "next", "--from", run, *wider)
    assert "do not fit this network" in sentence and not (tmp_path / "next").exists()


def test_plan_for_another_schedule(refused, run, tmp_path):
    Euler().plan(VP(), [1.0, 0.5, 0.0]).save(tmp_path / "plan.json")
    assert "This plan was made for VP" in refused("sample", run, "--plan", tmp_path / "plan.json", "--n", 2)


def test_label_on_a_model_without(refused, run):
    config = json.loads((run / "config.json").read_text())
    tensors = {k: v for k, v in load_file(run / "model.safetensors").items() if "label" not in k}
    config["data"]["classes"] = []
    (run / "config.json").write_text(json.dumps(config))
    save_file(tensors, run / "model.safetensors", metadata={"backdrift": json.dumps({**config, "step": 8})})
    assert "trained without labels" in refused("sample", run, "--label", 3)


@pytest.mark.parametrize("allowed", [0, 1, 2, 5])
def test_full_disk(cli, digits_run, tmp_path, monkeypatch, allowed):
    """The disk is full after a number of files; the same command goes on when there is room again."""
    written, fsync = [], os.fsync

    def full(file):
        written.append(file)
        if len(written) > allowed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    run = tmp_path / digits_run.name
    status, _, err = cli("train", "--run", run, *TINY)
    assert status == 2 and err.count("\n") == 1 and "The disk is full" in err and "Traceback" not in err
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]  # nothing half-written is left
    monkeypatch.setattr(os, "fsync", fsync)
    assert cli("train", "--run", run, *TINY).status == 0
    assert checkpoints(run)[-1].read_bytes() == checkpoints(digits_run)[-1].read_bytes()
