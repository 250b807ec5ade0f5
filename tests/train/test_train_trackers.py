"""Trackers get the records of metrics.jsonl, are opened late and closed always, and say what they lack at once."""

import sys
import types

import pytest

from backdrift.errors import UserError
from backdrift.run import Run
from backdrift.train import trackers
from backdrift.train.loop import train


class Writer:
    """Stands in for torch's SummaryWriter and for a run of Weights & Biases."""

    def __init__(self, *words, **named):
        self.words, self.named, self.written, self.closed = words, named, [], False

    def add_scalar(self, name, value, step):
        self.written.append((step, {name: value}))

    def log(self, values, step):
        self.written.append((step, values))

    def close(self):
        self.closed = True

    finish = close

    def seen(self):
        """{(step, name): value}."""
        return {(step, name): value for step, values in self.written for name, value in values.items()}


@pytest.fixture
def writers(monkeypatch):
    """The writers that are opened, in place of both packages."""
    made = []

    def open_writer(*words, **named):
        made.append(Writer(*words, **named))
        return made[-1]

    board = types.SimpleNamespace(SummaryWriter=open_writer)
    wandb = types.SimpleNamespace(init=open_writer, login=lambda prompt, verify: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return made


@pytest.mark.parametrize("kind", [trackers.TensorBoard, trackers.WeightsAndBiases])
def test_every_record_arrives(tmp_path, pictures, options, tiny, writers, kind):
    run = Run(tmp_path / "some run")
    tracker = kind(run)
    tracker.close()
    assert writers == []
    train(pictures, options, run=run, net=tiny(), on_record=tracker)
    tracker.close()
    (writer,) = writers
    wanted = {(r["step"], name): value for r in run.metrics() for name, value in trackers.numbers(r).items()}
    assert writer.seen() == wanted and writer.closed
    assert {name for _, name in wanted} >= {"loss", "lr", "pictures", "loss_by_noise/11.2 to 22.5 degrees"}
    assert {step for step, _ in wanted} == {3, 6, 9, 12}
    if kind is trackers.TensorBoard:
        assert writer.words == (str(run.folder / "tensorboard"),) and writer.named == {"purge_step": 3}
    else:
        assert writer.named["name"] == "some run" and writer.named["config"] == run.config()
        kind(run)({"step": 1, "loss": 2.0})
        assert writers[1].named["id"] == writer.named["id"] and writers[1].named["resume"] == "allow"


def test_numbers_leave_out_what_was_not_measured():
    found = trackers.numbers({"step": 5, "loss": 0.5, "loss_by_noise": [1, None, 2, None, None, None, None, 3]})
    assert found == {
        "loss": 0.5,
        "loss_by_noise/00.0 to 11.2 degrees": 1.0,
        "loss_by_noise/22.5 to 33.8 degrees": 2.0,
        "loss_by_noise/78.8 to 90.0 degrees": 3.0,
    }


@pytest.mark.parametrize(
    "kind, package, extra",
    [
        (trackers.TensorBoard, "torch.utils.tensorboard", "backdrift[tensorboard]"),
        (trackers.WeightsAndBiases, "wandb", "backdrift[wandb]"),
    ],
)
def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch, kind, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as said:
        kind(Run(tmp_path))
    assert str(said.value).endswith(f"needs pip install {extra}.")


def test_nobody_logged_in_is_said_before_work(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(login=lambda prompt, verify: False))
    with pytest.raises(UserError, match="run wandb login"):
        trackers.WeightsAndBiases(Run(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.WeightsAndBiases(Run(tmp_path))
