"""`backdrift diagnose`: verdicts on every rung, a page and its figures; one sentence for each mistake."""

import json

SMALL = ("--atoms", 60, "--n", 200, "--steps", 3)


def test_a_sampler_on_the_runs_own_pictures(cli, digits_run, tmp_path):
    page = tmp_path / "lens.html"
    words = ("--operator", "down:2", "--sampler", "pigdm", "--noise", 1, "--no-remedy", "--out", page)
    status, said, err = cli("diagnose", digits_run, *words, *SMALL)
    assert status == 0, err
    assert "weights of the modes" in said and "error budget" in said and str(page) in said
    found = json.loads(page.with_suffix(".json").read_text())
    assert found["command"].startswith("backdrift diagnose") and found["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
    rungs = next(f for f in found["findings"] if f["name"] == "distance")["rungs"]
    assert list(rungs) == ["exact", "integrator", "sampler", "learned"]
    assert page.read_text().count("data:image/png") >= 6


def test_mistakes(refused, digits_run, tmp_path):
    sentence = refused("diagnose", digits_run, "--operator", "denoise", "--noise", 0.01, *SMALL)
    assert "effective atoms" in sentence and "standard deviation" in sentence
    assert "at least 200" in refused("diagnose", digits_run, "--operator", "denoise", "--n", 20)
    assert "operator" in refused("diagnose", digits_run, "--operator", "donwsample")
    assert "linear" in refused("diagnose", digits_run, "--operator", "clip", "--sampler", "pigdm", *SMALL)
    assert ".html" in refused("diagnose", digits_run, "--operator", "denoise", "--out", tmp_path / "a.txt")
