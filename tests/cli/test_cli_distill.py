"""`backdrift distill`: a student that samples by its own plans, and one sentence for each mistake."""

import json

import pytest

import backdrift as bd
from command import TINY, in_new_process

FEW = ("--updates", 4, "--batch", 16)


@pytest.mark.parametrize("method", ["easy", "discrete", "continuous", "progressive", "rectified"])
def test_every_method_ends_in_a_run(cli, digits_run, tmp_path, method):
    out = tmp_path / "student"
    words = ("distill", digits_run, "--method", method, "--out", out, *FEW, "--n", 50 if method == "easy" else 0)
    status, said, err = cli(*words)
    assert status == 0, err
    student = bd.load(out)
    counts = {"progressive": [2], "rectified": []}.get(method, [1, 2, 4])
    assert [count for count in (1, 2, 4) if student.tuned_plan(count)] == counts
    assert student.sample(3, label=[1, 2, 3], steps=2).shape == (3, 1, 8, 8)
    assert student.denoiser.ends_path == (method not in ("progressive", "rectified"))
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


def test_a_student_is_no_teacher_and_a_target_must_fit(cli, refused, digits_run, tmp_path):
    assert cli("distill", digits_run, "--out", tmp_path / "student", *FEW, "--n", 0).status == 0
    assert "student already" in refused("distill", tmp_path / "student", "--n", 0)
    assert cli("train", "--run", tmp_path / "v", "--target", "v", *TINY).status == 0
    assert "edm_f" in refused("distill", tmp_path / "v", "--method", "continuous", "--n", 0)
    assert not (tmp_path / "v-distilled").exists()
