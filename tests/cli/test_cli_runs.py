"""Several runs: another average of one, a list of all, and some side by side."""

import json
import re
import shutil
import sys

import pytest
import torch

import backdrift as bd
from backdrift.evaluate.widths import by_width
from backdrift.report.summary import find, summary
from backdrift.run import Run
from backdrift.train.ema import Power
from command import TINY


@pytest.fixture
def folder(digits_run, tmp_path):
    """runs/ with a whole run and a copy in a folder below."""
    shutil.copytree(digits_run, tmp_path / "runs" / "first")
    shutil.copytree(digits_run, tmp_path / "runs" / "deep" / "second")
    return tmp_path / "runs"


def evaluated(run, value=1.25):
    row = {"name": "FD (pixel PCA 24)", "value": value, "low": 1.0, "high": 1.5, "floor": 0.5, "n": 40}
    row |= {"reference": 174, "better": "lower", "note": ""}
    recall = {**row, "name": "recall (pixel PCA 24)", "value": 0.75, "better": "higher"}
    found = {"rows": [row, recall], "n": 40, "steps": 2, "seed": 0}
    (run / "evaluation.json").write_text(json.dumps(found))


def test_another_average_is_a_run_like_any_other(cli, refused, digits_run, folder):
    run = folder / "first"
    status, out, _ = cli("average", run, "--width", 0.06)
    made = folder / "first-width-0.06"
    assert status == 0 and f"model      {made / 'model.safetensors'}" in out
    assert Run(made).options().average == Power(0.06)
    weights = [torch.cat([p.flatten() for p in bd.load(each).denoiser.parameters()]) for each in (run, made)]
    gap = float((weights[0] - weights[1]).norm() / weights[0].norm())
    assert 1e-5 < gap < 0.05
    assert cli("sample", made, "--n", 2, "--steps", 2).status == 0
    out = cli("info", made).out
    assert f"Power (width 0.06), of {run}" in out and "8 of 8 steps" in out and "backdrift average" in out
    assert "holds a run already" in refused("average", run, "--width", 0.06)
    assert "kept no snapshots" in refused("average", made)
    for words, sentence in (
        (("--width", 0.4), "between 0 and 0.288, not 0.4"),
        (("--width", 0.28), "cannot be made"),
        (("--n", 1), "at least two samples"),
    ):
        assert sentence in refused("average", run, *words)
    assert "is not a run folder" in refused("average", folder)


def test_widths_are_compared(cli, folder):
    run = Run(folder / "first")
    status, out, _ = cli("average", run.folder, "--widths", 0.05, 0.1, "--n", 20, "--steps", 1)
    lines = out.splitlines()
    assert status == 0 and " ".join(lines[0].split()) == "width held-out loss left over FD of 20 samples"
    rows = by_width(run, bd.data.digits(), (0.05, 0.1), n=20, steps=1)
    for line, row in zip(lines[1:3], rows, strict=True):
        assert line.startswith(f"{row.width:<7g} {row.loss:.5f}") and f"{row.distance:.4g}" in line
    # at the run's own width: what the training measured, beyond the rounding to float16
    assert rows[0].loss == pytest.approx(run.metrics()[-1]["validation_loss"], rel=1e-3)
    best = min(rows, key=lambda row: row.distance)
    assert lines[3] == f"next    backdrift average {run.folder} --width {best.width:g}" and out.count("lowest") == 1


def test_runs_are_listed_and_broken_ones_named(cli, refused, folder):
    evaluated(folder / "first")
    for name in ("torn model", "torn config", "empty"):
        shutil.copytree(folder / "first", folder / name)
    model = folder / "torn model" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:2000])
    (folder / "torn config" / "config.json").write_text("{")
    (folder / "empty" / "config.json").write_text(json.dumps({"format": 1, "backdrift": "0", "options": {}}))
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    status, out, _ = cli("runs", folder)
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert status == 0 and "foreign" not in out and "Traceback" not in out
    size = sum(p.numel() for p in bd.load(folder / "first").denoiser.parameters())
    for words in ("digits", "UNet", f"{size / 1e3:.0f} k", "8/8", "1.25 (0.5)", "0.75 (0.5)"):
        assert words in lines["first"]
    assert "1.25" not in lines["deep/second"] and "8/8" in lines["deep/second"]
    assert "torn model: Its model.safetensors is damaged." in out
    assert "torn config/config.json is not a config" in out and "empty: It cannot be read: KeyError" in out
    assert out.count("BROKEN") == 3 and "In brackets: the floor" in out
    (folder / "none").mkdir()
    assert cli("runs", folder / "none").out == f"There are no runs in {folder / 'none'}.\n"
    assert "There is no folder" in refused("runs", folder / "nowhere")


def test_summary_of_a_run(folder):
    run = folder / "first"
    evaluated(run)
    (run / "score-bound.json").write_text(json.dumps({"bits": 2.5}))
    found = summary(run)
    records = Run(run).metrics()
    assert find(folder) == [folder / "deep" / "second", run] and find(run) == [run]
    assert (found.step, found.steps, found.problem, found.bits) == (8, 8, "", (("bound", 2.5),))
    assert found.loss == [r["loss"] for r in records if "loss" in r][-1]
    assert found.size == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert (found.distance.value, found.distance.floor) == (1.25, 0.5)


def test_runs_side_by_side(cli, refused, folder):
    first, second, out = folder / "first", folder / "deep" / "second", folder / "page.html"
    evaluated(first)
    config = json.loads((second / "config.json").read_text())
    config["options"]["lr"] = 0.25
    (second / "config.json").write_text(json.dumps(config))
    status, said, _ = cli("compare", first, second, "--steps", 1, "--seed", 3, "--out", out)
    assert status == 0 and said == f"page  {out}\n"
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    assert "<td>lr</td><td>0.001</td><td>0.25</td>" in page and "<td>batch</td>" not in page
    assert "1.25 [1, 1.5] | 0.5</td><td></td><td>lower" in page and "second: none" in page
    pictures = re.findall(r'<img alt="(.*?)" src="data:image/png;base64,(.*?)"', page)
    # the same weights from the same noise: the same picture, byte for byte
    assert [words for words, _ in pictures] == ["first, guidance 2", "second, guidance 2"]
    assert pictures[0][1] == pictures[1][1]
    for title in ("Training loss", "Held-out loss", "Held-out loss by noise angle, at the end", "Speed"):
        assert f'aria-label="{title}"' in page
    for words, sentence in (
        ((first,), "needs two runs or more"),
        ((first, folder), "is not a run folder"),
        ((first, second, "--out", folder / "page.png"), "end in .html"),
        ((first, second, "--n", 0), "at least one sample"),
    ):
        assert sentence in refused("compare", *words)


def test_training_from_a_cache_is_the_same_training(cli, photos, tmp_path):
    cache = ("--pictures.cache", tmp_path / "cache")
    nets = []
    for name, words in (("plain", ()), ("mapped", cache), ("mapped", cache)):  # the second time it is finished
        assert cli("train", "--data", photos, "--run", tmp_path / name, *TINY, *words).status == 0
        nets.append(bd.load(tmp_path / name).denoiser.state_dict())
    assert all(torch.equal(x, other[name]) for other in nets[1:] for name, x in nets[0].items())
    assert Run(tmp_path / "mapped").config()["data"]["source"]["cache"] == str(tmp_path / "cache")


def test_a_missing_tracker_is_said_before_work(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = tmp_path / "run"
    assert "backdrift[tensorboard]" in refused("train", "--run", run, "--track", "tensorboard")
    assert "did you mean wandb?" in refused("train", "--run", run, "--track", "wandbb")
    assert not run.exists()


@pytest.mark.parametrize("verb", ["average", "runs", "compare"])
def test_the_verbs_have_help(cli, verb):
    assert cli(verb, "--help").out.startswith(f"usage: backdrift {verb}") and f"  {verb} " in cli("--help").out
