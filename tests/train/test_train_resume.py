"""A training that is stopped, killed or damaged ends with the weights of one that was not."""

import json
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

from backdrift.errors import UserError
from backdrift.run import Run, load_network
from backdrift.schedule import Flow
from backdrift.train import checkpoint
from backdrift.train.loop import train
from backdrift.train.precision import Precision
from backdrift.train.stop import Stopped


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def curves(run):
    return [{k: v for k, v in record.items() if k != "pictures_per_second"} for record in run.metrics()]


class Crash(Exception):
    pass


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_crashes_at_any_step_change_nothing(tmp_path, pictures, options, tiny, precision):
    options = replace(options, precision=precision, validate_every=4)
    whole = train(pictures, options, run=tmp_path / "whole", net=tiny())

    torch.manual_seed(5)
    for crash_at in (1, 4, 7, 10):

        def crash(progress, crash_at=crash_at):
            torch.rand(3)  # what a callback draws must not matter either
            if progress.step == crash_at:
                raise Crash

        with pytest.raises(Crash):
            train(pictures, options, run=tmp_path / "cut", net=tiny(), on_progress=crash)
    cut = train(pictures, options, run=tmp_path / "cut", net=tiny())
    assert not same(whole.network.net, tiny())
    assert same(whole.network.net, cut.network.net)
    assert curves(whole.run) == curves(cut.run)
    again = train(pictures, options, run=tmp_path / "cut", net=tiny())
    assert "finished" in again.notices[0] and same(whole.network.net, again.network.net)


def test_interrupt_saves_at_the_next_step_and_continues(tmp_path, pictures, options, tiny):
    whole = train(pictures, options, net=tiny())
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match="after step 3 of 12"):
        train(
            pictures,
            options,
            run=tmp_path,
            net=tiny(),
            on_progress=lambda p: signal.raise_signal(signal.SIGINT) if p.step == 3 else None,
        )
    assert signal.getsignal(signal.SIGINT) is before
    assert [p.name for p in Run(tmp_path).checkpoints.iterdir()] == ["step-0000003.safetensors"]
    with pytest.raises(KeyboardInterrupt) as twice:
        train(pictures, options, run=tmp_path, net=tiny(), on_progress=lambda p: raise_twice())
    assert not isinstance(twice.value, Stopped)
    assert same(whole.network.net, train(pictures, options, run=tmp_path, net=tiny()).network.net)


def raise_twice():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)


def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, pictures, options, tiny):
    whole = train(pictures, options, run=tmp_path, net=tiny())
    older, newer = sorted(whole.run.checkpoints.iterdir())
    assert older.name == "step-0000010.safetensors" and newer.name == "step-0000012.safetensors"
    newer.write_bytes(newer.read_bytes()[:-100])
    resumed = train(pictures, options, run=tmp_path, net=tiny())
    assert "step-0000012.safetensors is damaged" in resumed.notices[0]
    assert same(whole.network.net, resumed.network.net) and len(resumed.run.metrics()) == 4

    content = bytearray(newer.read_bytes())
    content[-3] ^= 1  # one bit inside: only the checksum sees it
    newer.write_bytes(content)
    older.write_bytes(b"")
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read"):
        train(pictures, options, run=tmp_path, net=tiny())


def test_checkpoints_keep_two_and_drop_the_future(tmp_path):
    for step in (5, 30, 10, 20):
        checkpoint.save(tmp_path, step, {"x": torch.full((2,), float(step))})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-0000010.safetensors", "step-0000020.safetensors"]
    saved, notices = checkpoint.latest(tmp_path)
    saved.fill({"x": (found := torch.zeros(2))})
    assert saved.step == 20 and torch.equal(found, torch.full((2,), 20.0)) and notices == []


def test_full_disk_is_said_in_a_sentence_and_keeps_what_was_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"x": torch.zeros(3)})

    def full(tensors, path, metadata):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="The disk is full"):
        checkpoint.save(tmp_path, 2, {"x": torch.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001.safetensors"]


def test_tied_weights_are_saved_and_come_back(tmp_path):
    shared = torch.arange(6.0)
    checkpoint.save(tmp_path, 1, {"a": shared, "b": shared, "c": shared[2:4]})
    _, tensors = checkpoint.load(tmp_path / "step-0000001.safetensors")
    assert torch.equal(tensors["a"], shared) and torch.equal(tensors["b"], shared)
    assert torch.equal(tensors["c"], shared[2:4])


def test_other_choices_in_the_same_folder_are_refused(tmp_path, pictures, options, tiny):
    train(pictures, options, run=tmp_path, net=tiny())
    with pytest.raises(UserError, match=r"lr = 0.001, and now it is 0.002"):
        train(pictures, replace(options, lr=2e-3), run=tmp_path, net=tiny())
    with pytest.raises(UserError, match=r"schedule.kind = schedule.Cosine, and now it is schedule.Flow"):
        train(pictures, replace(options, schedule=Flow()), run=tmp_path, net=tiny())
    with pytest.raises(UserError, match=r"data.fingerprint"):
        train(pictures.subset(range(40)), options, run=tmp_path, net=tiny())


def test_weights_that_do_not_fit_are_named(tmp_path, pictures, options, tiny):
    train(pictures, options, run=tmp_path / "a", net=tiny())
    with pytest.raises(UserError, match=r"does not fit .*: net.enter.weight is 32 x 17 in the file and 8 x 17"):
        train(pictures, options, run=tmp_path / "a", net=tiny(width=8))
    with pytest.raises(UserError, match=r"label.weight is 4 x 32 in the file and 6 x 32"):
        load_network(tmp_path / "a", net=tiny(classes=5))
    with pytest.raises(UserError, match=r"The weights of .*a do not fit this network: enter.weight"):
        train(pictures, options, run=tmp_path / "b", net=tiny(width=8), start_from=tmp_path / "a")
    assert not (tmp_path / "b").exists()


def test_metrics_cut_short_by_a_crash_are_mended(tmp_path, pictures, options, tiny):
    whole = train(pictures, options, run=tmp_path, net=tiny())
    lines = whole.run.metrics_path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6, 9, 12]
    newest = max(whole.run.checkpoints.iterdir())
    newest.unlink()
    whole.run.metrics_path.write_text("\n".join(lines[:3]) + '\n{"step": 12, "lo')
    leftover = whole.run.checkpoints / ".step-0000012.safetensors.x.safetensors"
    leftover.write_bytes(b"half")
    resumed = train(pictures, options, run=tmp_path, net=tiny())
    assert [record["step"] for record in resumed.run.metrics()] == [3, 6, 9, 12] and not leftover.exists()


def test_two_processes_cannot_share_a_folder(tmp_path, pictures, options, tiny):
    pytest.importorskip("fcntl")

    def second(progress):
        with pytest.raises(UserError, match="Another process is training"):
            train(pictures, options, run=tmp_path, net=tiny())

    train(pictures, options, run=tmp_path, net=tiny(), on_progress=second)


KILLED = """
import sys, time
from dataclasses import replace
import torch
torch.set_num_threads(1)
from backdrift.data.pictures import Pictures
from backdrift.train.loop import train
from backdrift.train.networks import UNetChoice
from backdrift.train.options import for_pictures
pixels = (torch.arange(60 * 64) ** 2 % 251).to(torch.uint8).view(60, 1, 8, 8)
pictures = Pictures(pixels, torch.arange(60) % 4, tuple("abcd"), [""] * 60, {"kind": "test"})
net = UNetChoice(width=16, multipliers=(1,), blocks=1, attention=(), dropout=0.1)
options = replace(for_pictures(pictures), steps=40, batch=8, net=net, precision="bf16", sample_every=0)
options = replace(options, checkpoint_every=3, log_every=4, validate_every=0)
train(pictures, options, run=sys.argv[1], on_progress=lambda p: time.sleep(float(sys.argv[2])))
"""


def test_killed_processes_end_with_the_same_bits(tmp_path, monkeypatch):
    script, killed, whole = tmp_path / "script.py", Run(tmp_path / "killed"), Run(tmp_path / "whole")
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(killed.folder)]
    process = subprocess.Popen([*command, "0.2"])
    try:
        deadline = time.monotonic() + 60
        while not (killed.checkpoints.is_dir() and any(killed.checkpoints.glob("step-*"))):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.13)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 3 <= checkpoint.latest(killed.checkpoints)[0].step < 40
    process = subprocess.Popen([*command, "0"])
    # while the killed process's successor works, the same training here, with its one thread
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [str(script), str(whole.folder), "0"])
    runpy.run_path(str(script))
    torch.set_num_threads(threads)
    assert process.wait() == 0
    assert same(load_network(killed.folder), load_network(whole.folder))
    assert curves(killed) == curves(whole)
