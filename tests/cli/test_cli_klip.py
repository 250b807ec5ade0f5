"""`backdrift klip`: measurements screened with a run as the prior."""

import json

import numpy as np
import torch
from PIL import Image

import backdrift as bd


def test_what_stands_out_is_first(cli, digits_run, tmp_path):
    held = bd.data.digits().split()[1]
    blur = bd.inverse.Blur(bd.inverse.gaussian_kernel(1.0, 3), (1, 8, 8), 0.1)
    x = held.tensor([3, 5, 7])
    x[1] = -x[1]
    np.save(tmp_path / "y.npy", blur.draw(x, bd.Noise.of(0, 3)).numpy())
    page = tmp_path / "out" / "page.html"
    few = ("--usual", 24, "--n", 2, "--steps", 4, "--levels", 6, "--noise", 0.1, "--out", page)
    status, out, _ = cli("klip", digits_run, "--operator", "blur:1", "--y", tmp_path / "y.npy", *few)
    assert status == 0 and out.splitlines()[0].startswith("y.npy 1") and str(page) in out
    figures = json.loads(page.with_suffix(".json").read_text())
    assert figures["usual"] == 24 and len(figures["measurements"]) == 3
    assert page.read_text().count("<img") == 3
    again = cli("klip", digits_run, "--operator", "blur:1", "--y", tmp_path / "y.npy", *few, "--batch", 2)
    assert again.status == 0
    for a, b in zip(
        figures["measurements"], json.loads(page.with_suffix(".json").read_text())["measurements"], strict=True
    ):
        assert np.isclose(a["klip"], b["klip"], rtol=1e-4) and a["p"] == b["p"]


def test_pictures_are_measured_here(cli, digits_run, tmp_path):
    for k in range(2):
        noise = np.random.default_rng(k).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{k}.png")
    few = ("--usual", 19, "--n", 2, "--steps", 3, "--levels", 4, "--first", 1, "--out", tmp_path / "p.html")
    status, out, _ = cli("klip", digits_run, "--operator", "down:2", "--data", tmp_path, *few)
    assert status == 0 and out.startswith("0.png") and "1.png" not in out


def test_bad_input(refused, digits_run, tmp_path):
    np.save(tmp_path / "y.npy", torch.full((1, 8, 8), torch.nan).numpy())
    common = (digits_run, "--operator", "blur:1")
    assert "--y FILE.npy, or pictures" in refused("klip", *common)
    assert "infinite or missing" in refused("klip", *common, "--y", tmp_path / "y.npy")
    assert "at least 19" in refused("klip", *common, "--y", tmp_path / "y.npy", "--usual", 5)
    assert "--usual cannot be 100000" in refused("klip", *common, "--y", tmp_path / "y.npy", "--usual", 100000)
    assert "end so" in refused("klip", *common, "--y", tmp_path / "y.npy", "--out", tmp_path / "page.pdf")
    np.save(tmp_path / "z.npy", torch.zeros(1, 7, 8).numpy())
    np.save(tmp_path / "good.npy", torch.zeros(1, 8, 8).numpy())
    assert "compares two denoisers" in refused("klip", *common, "--y", tmp_path / "good.npy", "--sampler", "daps")
    assert "of shape (1, 8, 8)" in refused("klip", *common, "--y", tmp_path / "z.npy")
