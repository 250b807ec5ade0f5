"""`backdrift reconstruct`: what it writes, in which units, and one sentence for each mistake."""

import numpy as np
import pytest
import torch
from PIL import Image

from backdrift import UserError
from backdrift.cli.operators import OPERATORS, operator, rows_seen
from backdrift.cli.reconstruct import chosen_window, in_model_units
from backdrift.data.values import Window
from backdrift.inverse import LinearMeasurement, Radon

OWN = """
import backdrift as bd

class Half(bd.inverse.LinearMeasurement):
    def __init__(self, event_shape, noise):
        self.event_shape, self.shape = event_shape, (event_shape[0], event_shape[1] // 2, event_shape[2])
        self.noise = bd.inverse.GaussianNoise(noise)

    def forward(self, x):
        return x[:, :, ::2]

wrong = 3
"""


@pytest.mark.parametrize("word", OPERATORS)
def test_every_operator_is_made_and_measures(word):
    shape = (1, 16, 16)
    made = operator(word, shape, 0.1, torch.ones(1, 16, 16) if word == "inpaint" else None)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert made.forward(x).shape == (2, *made.shape)
    assert made.noise.smooth
    if isinstance(made, LinearMeasurement):
        v = made.forward(x.flip(0))
        assert float((made.forward(x) * v).sum()) == pytest.approx(float((x * made.adjoint(v)).sum()), rel=1e-4)


def test_numbers_are_what_they_say():
    assert operator("radon:7", (1, 16, 16), 0.1).shape == (1, 7, 16)
    assert operator("limited:60", (1, 16, 16), 0.1).shape == (1, 20, 16)
    assert operator("fan:5", (1, 16, 16), 0.1).shape == (1, 5, 24)
    assert operator("down:4", (3, 16, 16), 0.1).shape == (3, 4, 4)
    assert operator("compressed:0.5", (1, 16, 16), 0.1).shape == (128,)
    mask = rows_seen(16, 8, 4)
    assert mask[0].all() and mask.any(1).sum() == 4 and (mask.all(1) == mask.any(1)).all()


def test_units_of_a_linear_y_are_those_of_its_pictures():
    window, x = Window(-160.0, 240.0), torch.rand(1, 1, 8, 8) * 2 - 1
    radon = Radon(torch.tensor([0.0, 0.7, 1.4]), (1, 8, 8), 0.1)
    y = radon.forward(window.restore(x))[0]
    torch.testing.assert_close(in_model_units(radon, y, window), radon.forward(x)[0], rtol=1e-4, atol=1e-4)
    assert chosen_window("soft") == window and chosen_window("-160,240") == window and chosen_window(None) is None


def test_a_reconstruction_in_units_with_its_page(cli, digits_run, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    truth = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    Image.fromarray(truth).save(tmp_path / "truth.png")
    words = ("--operator", f"{tmp_path / 'mine.py'}:Half", "--truth", tmp_path / "truth.png", "--noise", 200)
    how = ("--n", 3, "--steps", 3, "--sampler", "ddnm", "--out", tmp_path / "made")
    done = cli("reconstruct", digits_run, *words, *how)
    assert done.status == 0 and "covers the truth" in done.out
    mean, samples = np.load(tmp_path / "made" / "mean.npy"), np.load(tmp_path / "made" / "samples.npy")
    assert mean.shape == (1, 8, 8) and samples.shape == (3, 1, 8, 8)
    # DDNM agrees with y, which is the truth's even rows with noise of 200 in 65535
    assert np.abs(mean[0, ::2] - truth[::2]).max() < 1000 and np.abs(mean - samples.mean(0)).max() < 1
    assert np.load(tmp_path / "made" / "std.npy").max() > 500
    assert "PSNR" in (tmp_path / "made" / "page.html").read_text()
    # the same from y itself
    np.save(tmp_path / "y.npy", truth[::2].astype(np.float32))
    again = (*words[:2], "--y", tmp_path / "y.npy", "--window", "0,65535", "--noise", 200)
    assert cli("reconstruct", digits_run, *again, *how).status == 0
    assert np.abs(np.load(tmp_path / "made" / "mean.npy")[0, ::2] - truth[::2]).max() < 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--operator", "radon:4"), "Give the measurement as --y"),
        (("--operator", "radon:4", "--y", "none.npy"), "There is no file"),
        (("--operator", "lens", "--held-out", 0), "no operator 'lens'"),
        (("--operator", "radon:x", "--held-out", 0), "number is views"),
        (("--operator", "denoise:2", "--held-out", 0), "takes no number"),
        (("--operator", "inpaint", "--held-out", 0), "needs a --mask"),
        (("--operator", "down:2.5", "--held-out", 0), "whole number"),
        (("--operator", "down:3", "--held-out", 0), "does not divide"),
        (("--operator", "down", "--held-out", 99999), "holds out"),
        (("--operator", "down", "--held-out", 0, "--noise", 0), "positive standard"),
        (("--operator", "down", "--held-out", 0, "--sampler", "mmmps"), "did you mean"),
        (("--operator", "phase", "--held-out", 0, "--sampler", "pigdm"), "linear measurement"),
        (("--operator", "down", "--held-out", 0, "--truth", "a.png"), "choose one"),
        (("--operator", "down", "--held-out", 0, "--window", "lng"), "did you mean lung"),
        (("--operator", "missing.py:A", "--held-out", 0), "is missing"),
        (("--operator", "down", "--held-out", 0, "--n", 1), "at least 2"),
    ],
)
def test_mistakes(refused, digits_run, words, sentence):
    assert sentence in refused("reconstruct", digits_run, *words)


def test_a_file_that_makes_no_measurement(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(UserError, match="defines no Whole"):
        operator(f"{tmp_path / 'mine.py'}:Whole", (1, 8, 8), 0.1)
    with pytest.raises(UserError, match="must accept"):
        operator(f"{tmp_path / 'mine.py'}:wrong", (1, 8, 8), 0.1)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        operator(f"{tmp_path / 'broken.py'}:A", (1, 8, 8), 0.1)
