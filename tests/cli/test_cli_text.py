"""Texts from the command line: train, sample, evaluate, report; and what is refused in one sentence."""

import json

import numpy as np
import pytest
from PIL import Image

from backdrift.cli.train import Train, read
from backdrift.data.scenes import scene
from command import TINY

NET = ("--unet.width", 32, "--unet.multipliers", 1, "--unet.blocks", 1, "--unet.attention", 0, "--precision", "fp32")
WORDS = (*NET, "--steps", 4, "--batch", 4, "--checkpoint-every", 2, "--sample-every", 4)
TEXTS = ("red heart", "blue heart", "black cat", "white cat face", "waving hand", "sun")


def save(folder, texts, count=24):
    """`count` pictures of noise with these texts in turn; None is none."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        text = texts[i % len(texts)]
        lines.append(json.dumps({"file_name": f"{i}.png", **({} if text is None else {"text": text})}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    return save(tmp_path_factory.mktemp("data") / "captioned", TEXTS, 300)


@pytest.fixture
def run(cli, captioned, tmp_path):
    assert cli("train", "--data", captioned, "--text", "--run", tmp_path / "run", *WORDS).status == 0
    return tmp_path / "run"


def test_a_run_with_texts_from_training_to_report(cli, refused, run, captioned, tmp_path):
    assert json.loads((run / "config.json").read_text())["options"]["text"]["kind"] == "text.Own"
    assert len(list((run / "samples").glob("step-*.png"))) == 1
    report = (run / "report.html").read_text()
    assert "Held-out texts" in report

    def drawn(name, *words):
        assert cli("sample", run, "--out", tmp_path / name, "--steps", 2, *words).status == 0
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("*.png"))]

    both = drawn("both", "--n", 4, "--text", "red heart", "black cat", "--guidance", 3)
    assert len(both) == 4
    assert drawn("one", "--index", 2, "--text", "red heart", "--guidance", 3) == [both[2]]  # texts go by the number
    assert drawn("other", "--index", 2, "--text", "black cat", "--guidance", 3) != [both[2]]
    assert "made with text" in refused("sample", run, "--out", tmp_path / "both", "--n", 5, "--steps", 2)

    assert cli("evaluate", run, "--n", 20, "--steps", 2).status == 0
    asked = json.loads((run / "evaluation.json").read_text())["plain_texts"]
    assert len(asked) == 20 and set(asked) <= set(TEXTS)
    assert cli("train", "--data", captioned, "--text", "--run", run, *WORDS).status == 0  # finished already

    assert "is empty" in refused("sample", run, "--text", "")
    assert "this model reads at most" in refused("sample", run, "--text", "one two three four five six seven eight")
    assert "data.texts" in refused("train", "--data", captioned, "--run", run, *WORDS)
    assert "--text needs a value" in refused("sample", run, "--text")
    assert "cannot be exported" in refused("export", run)


def test_texts_that_are_missing(refused, captioned, digits_run, tmp_path):
    assert "trained without text" in refused("sample", digits_run, "--text", "a seven")
    assert "have no texts" in refused("train", "--data", "digits", "--text", "--run", tmp_path / "run", *TINY)
    gaps = save(tmp_path / "gaps", ("red heart", None))
    assert "12 of 24 pictures have no text (1.png)" in refused("train", "--data", gaps, "--text", *TINY)
    assert "give the U-Net a level with attention" in refused("train", "--data", captioned, "--text", *TINY)


def test_scenes_are_data_of_the_command_line(refused):
    assert "take no --pictures.size" in refused("train", "--data", "scenes", "--pictures.size", 8)
    pictures = read(Train(data="scenes"))
    assert pictures.shape == (3, 24, 24) and pictures.texts[0] == scene(0, 0).text


def test_an_encoder_that_cannot_be_read(refused, captioned, tmp_path):
    assert "add --text" in refused("train", "--data", captioned, "--text-encoder", tmp_path, *TINY)
    words = ("--data", captioned, "--text", "--text-encoder", tmp_path)
    assert "no folder of a text encoder" in refused("train", *words, *TINY)
