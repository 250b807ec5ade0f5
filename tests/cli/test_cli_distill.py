"""`backdrift distill`: a student that samples by its own plans, and one sentence for each mistake."""

import json
from dataclasses import replace

import pytest
import torch

import backdrift as bd
from backdrift.distillation import distill, rehearse
from backdrift.fewstep.methods import Stage
from backdrift.objective.times import Angle
from backdrift.train.options import for_pictures
from command import TINY, in_new_process

FLOW_MAPS = ("maps", "align", "trajectory", "alpha-flow")
FEW = ("--updates", 4, "--batch", 16)


@pytest.fixture(autouse=True)
def quick_search(monkeypatch):
    monkeypatch.setattr("backdrift.distillation.SEARCHED", 32)


SLOW = [
    pytest.param(word, marks=pytest.mark.slow)
    for word in ("discrete", "continuous", "rectified", "align", "trajectory", "matching", "adversarial", "alpha-flow")
]


@pytest.mark.parametrize("method", ["easy", "maps", "progressive", *SLOW])
def test_every_method_ends_in_a_run(cli, digits_run, tmp_path, method):
    out = tmp_path / "student"
    words = ("distill", digits_run, "--method", method, "--out", out, *FEW, "--n", 50 if method == "easy" else 0)
    status, said, err = cli(*words)
    assert status == 0, err
    student = bd.load(out)
    counts = {"progressive": [2], "rectified": []}.get(method, [1, 2, 4])
    assert [count for count in (1, 2, 4) if student.tuned_plan(count)] == counts
    assert student.sample(3, label=[1, 2, 3], steps=2).shape == (3, 1, 8, 8)
    assert student.denoiser.ends_path == (method not in ("progressive", "rectified", *FLOW_MAPS))
    assert student.denoiser.told == (("toward",) if method in FLOW_MAPS else ())
    if method == "easy":
        assert "student" in said and "floor" in said
        rows = json.loads((out / "distillation.json").read_text())["rows"]
        assert [row["evaluations"] for row in rows if row["who"] == "student"] == [1, 2, 4]
        fresh = in_new_process("import sys, backdrift as bd; print(bd.load(sys.argv[1]).sample(2, steps=2).shape)", out)
        assert "2, 1, 8, 8" in fresh.stdout, fresh.stderr
        assert "The same noises" in (out / "distillation.html").read_text()
        # the same command continues, here with nothing left to do
        before = (out / "model.safetensors").read_bytes()
        status, _, err = cli(*words)
        assert status == 0 and "finished" in err and (out / "model.safetensors").read_bytes() == before


def test_mistakes(refused, digits_run, tmp_path):
    assert "1, 2, 4" in refused("distill", digits_run, "--steps", 3, "--n", 0)
    assert "at least 50" in refused("distill", digits_run, "--n", 10)
    assert "no run folder" in refused("distill", tmp_path / "gone")
    assert "at least one update" in refused("distill", digits_run, "--updates", 0)
    assert "There is no method 'mean-flo' (did you mean mean-flow?)" in refused(
        "distill", digits_run, "--method", "mean-flo"
    )
    assert "A range of guidance is for paths" in refused("distill", digits_run, "--method", "maps", "--guidance-to", 3)
    assert "no teacher to guide" in refused("distill", digits_run, "--method", "shortcut", "--guidance", 2)


def test_a_student_is_no_teacher_and_a_target_must_fit(cli, refused, digits_run, tmp_path):
    assert cli("distill", digits_run, "--out", tmp_path / "student", *FEW, "--n", 0).status == 0
    assert "student already" in refused("distill", tmp_path / "student", "--n", 0)
    assert cli("train", "--run", tmp_path / "v", "--target", "v", *TINY).status == 0
    assert "edm_f" in refused("distill", tmp_path / "v", "--method", "continuous", "--n", 0)
    assert not (tmp_path / "v-distilled").exists()


def test_from_data_alone(cli, refused, tmp_path):
    words = ("train", "--task", "fewstep", "--run", tmp_path / "few", *TINY)
    status, said, err = cli(*words, "--fewstep.method", "shortcut")
    assert status == 0, err
    assert "--steps 2" in said
    model = bd.load(tmp_path / "few")
    assert model.denoiser.told == ("toward",)
    assert [count for count in (1, 2, 4) if model.tuned_plan(count)] == [1, 2, 4]
    assert model.sample(3, label=[1, 2, 3], steps=7).shape == (3, 1, 8, 8)  # jumps in any number
    records = [json.loads(line) for line in (tmp_path / "few" / "metrics.jsonl").read_text().splitlines()]
    assert any("watched_fd" in record for record in records)
    assert "There is no few-step method 'mean'" in refused(*words, "--fewstep.method", "mean")
    assert "loss of its own" in refused(*words, "--uncertainty")


def test_a_teacher_of_another_shape_and_a_net_without_forward_mode_are_refused(digits_run, tmp_path):
    teacher = bd.load(digits_run)
    others = bd.data.digits()
    larger = replace(others, pixels=others.pixels.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(bd.UserError, match=r"makes pictures of shape \(1, 8, 8\), and these have \(1, 16, 16\)"):
        distill(teacher, pictures=larger, run=tmp_path / "no")
    network, options = teacher.denoiser, for_pictures(others)
    network.net.exit = torch.nn.Sequential(network.net.exit, Stiff())
    with pytest.raises(bd.UserError, match="no forward-mode derivative"):
        rehearse(Stage("one", bd.fewstep.MeanFlow(), Angle()), network, others, replace(options, batch=2))
    rehearse(Stage("one", bd.fewstep.Shortcut(), Angle()), network, others, replace(options, batch=2))


class Double(torch.autograd.Function):
    """Twice its input, with a backward rule and no forward one."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Stiff(torch.nn.Module):
    def forward(self, x):
        return Double.apply(x)
