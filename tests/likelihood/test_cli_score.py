"""`backdrift score` on a small run."""

import json

import numpy as np
import pytest

import backdrift as bd
from backdrift.config import to_config
from backdrift.likelihood import ByBound, score
from backdrift.schedule import Cosine, Learned
from command import TINY


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


def test_the_noise_levels_follow_a_clock(cli, refused, digits_run, tmp_path):
    words = ("score", digits_run, "--n", 2, "--steps", 3)
    table = tmp_path / "schedule.json"
    table.write_text(json.dumps(to_config(Learned(Cosine(), (0.0, 0.5, 1.0), (0.0, 0.2, 1.0)))))
    found = {}
    for clock in (None, "cosine", table):
        assert cli(*words, *([] if clock is None else ["--clock", clock]))[0] == 0
        found[clock] = json.loads((digits_run / "score-bound.json").read_text())
    (digits_run / "score-bound.json").unlink()
    assert found[None]["clock"] is None and found["cosine"]["clock"]["kind"] == "schedule.Cosine"
    assert found[table]["clock"]["places"] == [0.0, 0.2, 1.0]
    assert len({tuple(one["pictures"]) for one in found.values()}) == 3
    assert "no schedule 'cosin'" in refused(*words, "--clock", "cosin")
    assert "cannot be read" in refused(*words, "--clock", tmp_path / "none.json")
    table.write_text('{"kind": "times.Uniform"}')
    assert "no noise schedule" in refused(*words, "--clock", table)
    assert "--method bound" in refused(*words, "--clock", "cosine", "--method", "mmse")


@pytest.mark.slow
def test_a_learned_clock_is_kept_and_used_again(cli, digits_run, tmp_path):
    words = ("score", digits_run, "--n", 2, "--steps", 3, "--labels", "--clock")
    assert cli(*words, "learned")[0] == 0
    table, path = digits_run / "schedule.json", digits_run / "score-bound.json"
    kept, first = json.loads(table.read_text()), json.loads(path.read_text())
    assert cli(*words, table)[0] == 0
    again = json.loads(path.read_text())
    run = tmp_path / "on it"
    assert cli("train", "--run", run, "--schedule", table, "--times", "uniform", "--weight", "bound", *TINY)[0] == 0
    table.unlink(), path.unlink()
    assert first["clock"] == kept and again["pictures"] == first["pictures"]
    assert json.loads((run / "config.json").read_text())["options"]["schedule"] == kept


def test_mistakes_are_one_sentence(refused, digits_run, photos, tmp_path):
    assert "did you mean bound" in refused("score", digits_run, "--method", "bond")
    assert "at least 2" in refused("score", digits_run, "--n", 1)
    assert "174 pictures" in refused("score", digits_run, "--n", 1000)
    assert "at least 2, not 1" in refused("score", digits_run, "--draws", 1)
    assert "finest noise" in refused("score", digits_run, "--n", 2, "--finest", -1)
    assert "go with --data" in refused("score", digits_run, "--size", 8)
    assert "--size 8" in refused("score", digits_run, "--data", photos, "--size", 6)
    assert "no run folder" in refused("score", tmp_path / "nothing")
