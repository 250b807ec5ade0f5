"""`backdrift score` on a small run."""

import json

import numpy as np
import pytest

import backdrift as bd
from backdrift.likelihood import ByBound, score


def test_it_prints_and_keeps_what_the_library_finds(cli, digits_run):
    status, out, _ = cli("score", digits_run, "--n", 6, "--steps", 4, "--labels")
    found = json.loads((digits_run / "score-bound.json").read_text())
    (digits_run / "score-bound.json").unlink()
    assert status == 0 and f"{found['bits']:.4f}" in out and "s.e." in out and "given their labels" in out
    assert found["definition"] in out and found["n"] == 6 and found["steps"] == 4 and found["data"] == "held-out"
    pictures = bd.data.digits().split()[1].subset(slice(6))
    again = score(bd.load(digits_run).denoiser, pictures.tensor(), ByBound(4), cond=pictures.cond())
    assert found["pictures"] == pytest.approx(again.pictures, abs=1e-4)


@pytest.mark.parametrize("method", ["ode", "mmse"])
def test_other_methods_and_other_pictures(cli, digits_run, tmp_path, method):
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8))
    status, out, _ = cli("score", digits_run, "--data", tmp_path / "grey.npy", "--method", method, "--steps", 3)
    path = digits_run / f"score-{method}.json"
    found = json.loads(path.read_text())
    path.unlink()
    assert status == 0 and "5 pictures" in out and "uniform dequantisation" in out and found["labels"] is False


def test_mistakes_are_one_sentence(refused, digits_run, photos, tmp_path):
    assert "did you mean bound" in refused("score", digits_run, "--method", "bond")
    assert "at least 2" in refused("score", digits_run, "--n", 1)
    assert "174 pictures" in refused("score", digits_run, "--n", 1000)
    assert "at least 2, not 1" in refused("score", digits_run, "--draws", 1)
    assert "finest noise" in refused("score", digits_run, "--n", 2, "--finest", -1)
    assert "go with --data" in refused("score", digits_run, "--size", 8)
    assert "--size 8" in refused("score", digits_run, "--data", photos, "--size", 6)
    assert "no run folder" in refused("score", tmp_path / "nothing")
