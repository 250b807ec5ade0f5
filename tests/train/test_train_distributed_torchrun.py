"""The command line under torchrun itself: one voice, one folder, and an end when a process ends."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from backdrift.cli import main
from backdrift.data import digits
from backdrift.run import Run
from backdrift.train import checkpoint
from backdrift.train.loop import train
from command import TINY

NET = """
import os, time
from pathlib import Path
from torch import nn
Path(__file__).with_name("pid-" + os.environ.get("RANK", "alone")).write_text(str(os.getpid()))
class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Conv2d(shape[0], shape[0], 3, padding=1)
    def forward(self, x, noise, cond=None):
        time.sleep(0.02)
        return self.layer(x)
"""


def torchrun(*words):
    # without the --, Python up to 3.11 takes --run for an option of torchrun's
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "backdrift", *map(str, words)], env=environment, **pipes)


def ours(text):
    return [line for line in text.splitlines() if line.startswith("backdrift: ")]


def begin_long_training(folder):
    """Under torchrun, up to its first checkpoint."""
    (folder / "net.py").write_text(NET)
    words = ("--run", folder / "run", "--net", f"{folder / 'net.py'}:Net", "--precision", "fp32")
    job = torchrun("train", *words, "--steps", 10_000, "--batch", 8, "--checkpoint-every", 3, "--sample-every", 0)
    deadline = time.monotonic() + 120
    while not checkpoint.all_in(folder / "run" / "checkpoints"):
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.05)
    return job


def continues_alone(folder):
    class Enough(Exception):
        pass

    def on_progress(progress):
        steps.append(progress.step)
        raise Enough

    run, steps = Run(folder / "run"), []
    saved, _ = checkpoint.latest(run.checkpoints)
    with pytest.raises(Enough):
        train(digits(), run.options(), run=run, device="cpu", on_progress=on_progress)
    return steps == [saved.step + 1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killing_one_process_ends_the_job(tmp_path, victim):
    job = begin_long_training(tmp_path)
    began = time.monotonic()
    os.kill(int((tmp_path / f"pid-{victim}").read_text()), signal.SIGKILL)
    _, err = job.communicate(timeout=100)
    assert time.monotonic() - began < 60 and job.returncode != 0
    (said,) = ours(err)
    assert "Another process of this job ended or stopped answering after step" in said and "is saved in" in said
    assert continues_alone(tmp_path)


@pytest.mark.slow
def test_stopping_torchrun_saves_and_says_so_once(tmp_path):
    job = begin_long_training(tmp_path)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=100)
    (said,) = ours(err)
    assert "Stopped after step" in said and "saved in" in said
    assert continues_alone(tmp_path)


@pytest.mark.slow
def test_two_processes_write_one_run(tmp_path):
    words = ("--length", 64, *TINY[: TINY.index("--steps")], "--batch", 8, "--run", tmp_path / "run")
    out, err = torchrun("train", *words, "--shard").communicate(timeout=200)
    assert [line.split()[0] for line in out.splitlines()] == ["model", "report", "next"] and ours(err) == []
    assert [record["step"] for record in Run(tmp_path / "run").metrics()][-1] == 8
    out, err = torchrun("train", *words, "--batch", 7).communicate(timeout=200)
    assert out == "" and ours(err) == [
        "backdrift: A batch of 7 cannot be shared equally by 2 processes; choose a batch of 6, or another number of "
        "processes."
    ]


@pytest.fixture
def second_of_two(monkeypatch):
    """As if torchrun had started this process as the second of two on this machine."""
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    return monkeypatch


def ended(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code, *capsys.readouterr()


def test_only_training_is_for_torchrun_and_the_first_process_says_so(second_of_two, capsys):
    assert ended(capsys, "sample", "run") == (2, "", "")
    second_of_two.setenv("LOCAL_RANK", "0")
    assert ended(capsys, "sample", "run") == (
        2,
        "",
        "backdrift: torchrun is for training; start backdrift sample by itself.\n",
    )
    second_of_two.delenv("RANK")  # another tool's WORLD_SIZE means nothing
    assert "no run folder" in ended(capsys, "sample", "run")[2]


def test_sharding_without_torchrun_and_two_lengths_are_refused(capsys, tmp_path):
    status, _, err = ended(capsys, "train", *TINY, "--run", tmp_path / "run", "--shard")
    assert status == 2 and "torchrun --nproc-per-node 2 -m -- backdrift train" in err and err.count("\n") == 1
    status, _, err = ended(capsys, "train", *TINY, "--run", tmp_path / "run", "--length", 100)
    assert status == 2 and "--steps and --length both say how long to train" in err
    assert not (tmp_path / "run").exists()


def test_another_batch_keeps_the_pictures_between_events(pictures):
    from backdrift.cli.train import Train, choices
    from backdrift.train.options import COUNTED, for_pictures

    made = for_pictures(pictures)
    assert made.batch == 128
    for batch in (32, 512):
        other = choices(Train(batch=batch), pictures)
        for name in COUNTED:
            assert getattr(other, name) * batch == pytest.approx(getattr(made, name) * 128, rel=0.3)
        assert other.steps * batch == made.steps * 128 + (256 if batch == 512 else 0)  # 187.5 steps of 512 are 188
        for share in (0.01, 0.3, 0.9):  # of the pictures: the same learning rate, and the same average of two weights
            assert other.rate.factor(share) == made.rate.factor(share)
    seen = 6400
    fine = torch.tensor([made.average.keep(seen + 32 * k, 32) for k in range(1, 17)], dtype=torch.float64).prod()
    assert float(fine) == pytest.approx(made.average.keep(seen + 512, 512), rel=1e-12)
    assert choices(Train(length=10_000, batch=64), pictures).steps == 157
    assert replace(made, sample_every=0).at_batch(64).sample_every == 0
    # a run of an older release, where another batch kept the number of steps
    before = replace(made, batch=32)
    assert choices(Train(batch=32), pictures, before) == before
