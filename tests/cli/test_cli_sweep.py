"""`backdrift sweep`: the page, the grid and the figures of several guidance weights, each what Python measures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import backdrift as bd
from backdrift.evaluate import PixelPCA, evaluate
from backdrift.guide import ClassifierFree, Interval


@pytest.fixture(scope="module")
def swept(digits_run, tmp_path_factory):
    from backdrift.cli import main

    out = tmp_path_factory.mktemp("sweep") / "page.html"
    words = ["--weights", "0", "1", "3", "--label", "3", "5", "--n", "30", "--steps", "3", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(digits_run), *words])
    assert ended.value.code == 0
    return out


def tile(path, row, column):
    return np.asarray(Image.open(path))[66 * row : 66 * row + 64 : 8, 66 * column : 66 * column + 64 : 8]


def test_rows_are_weights_and_columns_the_same_noise_and_label(swept, digits_run):
    model = bd.load(digits_run)
    for row, weight in enumerate((0.0, 1.0, 3.0)):
        x = model.sample(2, label=[3, 5], guidance=weight, steps=3)
        for column, picture in enumerate(bd.data.to_uint8(x)[:, 0].numpy()):
            np.testing.assert_array_equal(tile(swept.with_suffix(".png"), row, column), picture)


def test_figures_are_those_of_an_evaluation(swept, digits_run):
    """Weight 3, once more by hand: labels of random training pictures, the same noise, the run's own held-out part."""
    found = json.loads(swept.with_suffix(".json").read_text())
    assert [row["weight"] for row in found["weights"]] == [0.0, 1.0, 3.0] and found["n"] == 30
    model, (train, heldout) = bd.load(digits_run), bd.data.digits().split()
    labels = train.labels[torch.randint(len(train), (30,), generator=torch.Generator().manual_seed(0))]
    samples = model.sample(30, label=labels, guidance=3.0, steps=3).clamp(-1, 1)
    real = {"train_labels": train.labels, "heldout_labels": heldout.labels, "sample_labels": labels}
    features = (PixelPCA.fit(train.tensor(), 24),)
    table = evaluate(samples, train.tensor(), heldout.tensor(), features=features, **real)
    for mine, theirs in zip(found["weights"][2]["rows"], table.rows, strict=True):
        assert mine["name"] == theirs.name and mine["value"] == pytest.approx(theirs.value, rel=1e-4, abs=1e-6)
        assert mine["floor"] == pytest.approx(theirs.floor)


def test_page(swept):
    page = swept.read_text()
    for words in ("Precision against recall", "weights 0, 1, 3 from above", "Floor: 5 random sets", "backdrift sweep"):
        assert words in page
    assert "Precision against recall" in swept.with_suffix(".svg").read_text()


def test_steering_shapes_every_weight(cli, digits_run, tmp_path):
    out = tmp_path / "page.html"
    words = ("--weights", 4, "--label", 7, "--n", 20, "--steps", 3, "--interval", 0.2, 2, "--out", out)
    assert cli("sweep", digits_run, *words).status == 0
    guided = ClassifierFree(bd.load(digits_run).denoiser, Interval(4.0, 0.2, 2.0))
    x = bd.sample(guided, shape=(1, 1, 8, 8), cond={"label": torch.tensor([7])}, steps=3)
    np.testing.assert_array_equal(tile(out.with_suffix(".png"), 0, 0), bd.data.to_uint8(x)[0, 0].numpy())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--n", 5), "at least 20"),
        (("--weights",), "needs a value"),
        (("--weights", 1, -2), "A guidance weight is 0"),
        (("--weights", "nan"), "A guidance weight is 0"),
        (("--label", 12), "no label '12'"),
        (("--out", "page.png"), "end in .html"),
        (("--rescale", 0.5, "--project"), "give one of them"),
    ],
)
def test_mistakes(refused, digits_run, words, sentence):
    assert sentence in refused("sweep", digits_run, *words)
