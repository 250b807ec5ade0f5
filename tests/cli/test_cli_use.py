"""The main job by the command line: train, continue, sample, evaluate, report."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import backdrift as bd
from command import NET, TINY, in_new_process

OWN = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Conv2d(shape[0] + 1, shape[0], 3, padding=1)
    def forward(self, x, noise, cond=None):
        return self.layer(torch.cat([x, noise[:, None, None, None].expand_as(x[:, :1])], 1))
"""


def pixels(path):
    return np.asarray(Image.open(path))


def tiles(path, count):
    """The 8 x 8 pictures of a grid, which is enlarged 8 times with gaps of 2."""
    columns = int(np.ceil(np.sqrt(count)))
    grid = pixels(path)
    return [
        grid[r : r + 64 : 8, c : c + 64 : 8]
        for r, c in ((66 * (i // columns), 66 * (i % columns)) for i in range(count))
    ]


def test_training_again_says_finished_and_changes_nothing(cli, digits_run):
    before = (digits_run / "model.safetensors").read_bytes()
    status, out, err = cli("train", "--run", digits_run, *TINY)
    assert status == 0 and "finished" in err and (digits_run / "model.safetensors").read_bytes() == before
    assert str(digits_run / "report.html") in out and f"backdrift sample '{digits_run}'" in out


def test_info(cli, digits_run):
    status, out, _ = cli("info", digits_run)
    assert status == 0
    for words in (
        "1623 for training, 174 held out, 8x8x1",
        "8 of 8 steps of 8 pictures, fp32",
        "backdrift train --run",
    ):
        assert words in out


def test_grid_is_what_python_draws(cli, digits_run, tmp_path):
    words = ("--n", 5, "--label", 3, "--guidance", 2, "--steps", 3, "--seed", 4, "--out", tmp_path / "grid.png")
    assert cli("sample", digits_run, *words).status == 0
    x = bd.load(digits_run).sample(5, label=3, guidance=2.0, steps=3, seed=4)
    expected = bd.data.to_uint8(x)[:, 0].numpy()
    for mine, theirs in zip(tiles(tmp_path / "grid.png", 5), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_solver_grid_and_plan_are_the_same_choice(cli, digits_run, tmp_path):
    chosen = ("--solver", "euler", "--grid", "uniform", "--steps", 3, "--n", 4)
    assert cli("sample", digits_run, *chosen, "--out", tmp_path / "a.png").status == 0
    schedule = bd.load(digits_run).denoiser.process.schedule
    bd.solvers.Euler().plan(schedule, bd.grids.Uniform().times(schedule, 3)).save(tmp_path / "plan.json")
    assert (
        cli("sample", digits_run, "--plan", tmp_path / "plan.json", "--n", 4, "--out", tmp_path / "b.png").status == 0
    )
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    cli("sample", digits_run, "--steps", 3, "--n", 4, "--out", tmp_path / "c.png")
    assert (pixels(tmp_path / "a.png") != pixels(tmp_path / "c.png")).any()


def test_folder_of_samples_is_continued(cli, refused, digits_run, tmp_path):
    def draw(count, out, *words):
        return cli(
            "sample", digits_run, "--n", count, "--label", 1, 2, 3, "--steps", 2, "--batch", 3, "--out", out, *words
        )

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert "7 samples made, 0 were there" in draw(7, whole).out
    assert "4 samples made, 0 were there" in draw(4, cut).out
    (cut / "000001.png").unlink()
    kept = (cut / "000003.png").stat().st_mtime_ns
    assert "4 samples made, 3 were there" in draw(7, cut).out
    assert (cut / "000003.png").stat().st_mtime_ns == kept
    for i in range(7):
        # another batch may round a byte the other way
        mine, theirs = (pixels(folder / f"{i:06d}.png").astype(int) for folder in (whole, cut))
        assert abs(mine - theirs).max() <= 1
    alone = tmp_path / "alone"
    draw(1, alone, "--index", 5)
    assert [path.name for path in alone.glob("*.png")] == ["000005.png"]
    assert abs(pixels(alone / "000005.png").astype(int) - pixels(whole / "000005.png")).max() <= 1
    changed = ("sample", digits_run, "--n", 7, "--label", 1, 2, 3, "--steps", 3, "--out", cut)
    assert "holds samples made with steps 2, not 3" in refused(*changed)


def test_evaluation_goes_into_the_report(cli, digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    status, out, _ = cli("evaluate", run, "--n", 40, "--steps", 2, "--guidance", 3)
    assert status == 0
    for words in ("floor", "label agreement, guidance 3", "FD (pixel PCA 24)", "samples: 40 at 2 evaluations, seed 0"):
        assert words in out
    found = json.loads((run / "evaluation.json").read_text())
    assert found["n"] == 40 and all({"value", "low", "high", "floor", "n"} <= row.keys() for row in found["rows"])
    report = (run / "report.html").read_text()
    assert "Nearest training pictures" in report and "label agreement, guidance 3" in report
    assert "FD (pixel PCA 24)" in cli("info", run).out


def test_pictures_of_ones_own_then_on_from_their_weights(cli, photos, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli("train", "--data", photos, "--run", first, *TINY).status == 0
    model = bd.load(first)
    assert model.classes == ("cat", "dog") and model.event_shape == (3, 8, 8)
    assert cli("sample", first, "--label", "dog", "--n", 2, "--steps", 2, "--out", tmp_path / "dogs.png").status == 0
    assert pixels(tmp_path / "dogs.png").shape == (64, 130, 3)
    assert cli("train", "--data", photos, "--run", second, "--from", first, *TINY, "--lr", 1e-9).status == 0
    # a step of 1e-9 leaves the weights where the other run's average put them
    for mine, theirs in zip(bd.load(second).denoiser.parameters(), model.denoiser.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)


def test_network_of_ones_own(cli, refused, photos, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    own = ("--net", f"{tmp_path / 'mine.py'}:Net")
    words = ("--steps", 2, "--batch", 8, "--precision", "fp32", "--sample-every", 0)
    assert cli("train", "--data", photos, "--run", tmp_path / "run", *own, *words).status == 0
    assert f"pass --net {own[1]}" in refused("sample", tmp_path / "run")
    assert cli("sample", tmp_path / "run", *own, "--n", 2, "--steps", 2).status == 0


def test_grids_are_drawn_while_training(cli, tmp_path):
    run = tmp_path / "run"
    words = (*NET, "--steps", 4, "--batch", 8, "--sample-every", 2)
    assert cli("train", "--run", run, *words).status == 0
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-0000002.png", "step-0000004.png"]


def test_interrupt_is_one_sentence_and_the_command_goes_on(cli, digits_run, tmp_path, monkeypatch):
    from backdrift.train.training import Training

    advance = Training.advance

    def interrupted(self):
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Training, "advance", interrupted)
        status, out, err = cli("train", "--run", run, *TINY)
    assert (
        status == 130
        and out == ""
        and err == (f"backdrift: Stopped after step 3 of 8: saved in {run}, where the same command continues it.\n")
    )
    assert cli("train", "--run", run, *TINY).status == 0
    last = "checkpoints/step-0000008.safetensors"
    assert (run / last).read_bytes() == (digits_run / last).read_bytes()


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("train", "--stpes", "3"), ("sample",)])
def test_words_alone_do_not_wait_for_torch(words):
    code = """
import sys
from backdrift.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    print("status", ended.code)
print("heavy", sorted({"torch", "numpy", "PIL", "sklearn", "scipy"} & set(sys.modules)))
"""
    done = in_new_process(code, *words)
    assert re.search(r"heavy \[\]$", done.stdout.strip()), done.stdout + done.stderr
    assert f"status {0 if '--help' in words else 2}" in done.stdout and "Traceback" not in done.stderr
