"""Every recipe reads its data, trains, and ends with samples, evaluation and report, on pictures made on the spot."""

import json
import runpy
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import backdrift as bd

RECIPES = Path(__file__).parent.parent / "recipes"
CASES = {  # the side and mode of the pictures, folders that are labels, and further words
    "digits": (None, None, (), ()),
    "cifar10_unet_edm": (32, "RGB", ("cat", "dog"), ()),
    "cifar10_transformer_flow": (32, "RGB", ("cat", "dog"), ()),
    "emoji": (72, "RGBA", (), ()),
    "emoji 64": (72, "RGBA", (), ("--size", "64")),
    "scenes": (None, None, (), ()),
    "ct64": (64, "L", ("AbdomenCT", "ChestCT", "HeadCT"), ()),
}


def archive(folder, side, mode, classes, count=420):
    """A .zip of `count` noise pictures in the folders `classes`, or in none."""
    generator = np.random.default_rng(0)
    path = folder / "pictures.zip"
    shape = (side, side) if mode == "L" else (side, side, len(mode))
    with zipfile.ZipFile(path, "w") as out:
        for i in range(count):
            content = BytesIO()
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(content, "PNG")
            name = f"{classes[i * len(classes) // count]}/{i:04}.png" if classes else f"{i:04}.png"
            out.writestr(name, content.getvalue())
        if mode == "RGBA":
            texts = ({"file_name": f"{i:04}.png", "text": ("red heart", "sun")[i % 2]} for i in range(count))
            out.writestr("metadata.jsonl", "\n".join(map(json.dumps, texts)))
    return [str(path)]


def words(name, folder, count=420):
    side, mode, classes, more = CASES[name]
    data = archive(folder, side, mode, classes, count) if side else []
    return [*data, *more, "--run", str(folder / "run"), "--try"]


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_reads_its_data_and_its_options_train(name, tmp_path, monkeypatch):
    """All but the last part, which takes longer."""
    monkeypatch.syspath_prepend(RECIPES)
    recipe = pytest.importorskip("recipe")
    asked = []
    monkeypatch.setattr(recipe, "run", lambda *given: asked.append(given))
    script = str(RECIPES / f"{name.split()[0]}.py")
    monkeypatch.setattr(sys, "argv", [script, *words(name, tmp_path)])
    runpy.run_path(script, run_name="__main__")
    [(_, pictures, options, *_)] = asked
    side, _, classes, more = CASES[name]
    wanted = {"digits": 8, "emoji": 32, "scenes": 24}.get(name, 64 if more else side)
    assert pictures.shape[1:] == (wanted, wanted)
    assert pictures.classes == (classes or (tuple("0123456789") if name == "digits" else ()))
    options.net.build(pictures.shape, len(pictures.classes))
    assert (options.text is not None) == (name.split()[0] in ("emoji", "scenes"))
    trained = bd.train(pictures, replace(recipe.small(options), steps=1, batch=2), progress=False)
    assert trained.sample(1, steps=1).isfinite().all()


def whole(name, folder):
    script = str(RECIPES / f"{name.split()[0]}.py")
    command = [sys.executable, script, *words(name, folder), "--steps", "2", "--samples", "20", "--evaluations", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = folder / "run"
    assert {"config.json", "model.safetensors", "report.html", "samples"} <= {p.name for p in run.iterdir()}
    assert Image.open(run / "samples" / "final.png").size[0] > 8 * 8
    assert json.loads((run / "evaluation.json").read_text())["n"] == 20


def test_the_digits_recipe_runs_to_its_end(tmp_path):
    whole("digits", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES)[1:])
def test_a_recipe_runs_to_its_end(name, tmp_path):
    whole(name, tmp_path)


@pytest.mark.slow
def test_a_killed_recipe_continues(tmp_path):
    """The same command again ends with the weights of a run that nobody disturbed."""
    weights = {}
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        folder.mkdir()
        script = str(RECIPES / "digits.py")
        command = [sys.executable, script, "--run", str(folder / "run"), "--try", "--steps", "300", "--samples", "20"]
        if folder.name == "killed":
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while not list((folder / "run" / "checkpoints").glob("*")):
                assert process.poll() is None
                time.sleep(0.1)
            process.kill()
            process.wait()
        subprocess.run(command, check=True, capture_output=True)
        weights[folder.name] = (folder / "run" / "model.safetensors").read_bytes()
    assert weights["whole"] == weights["killed"]


def test_a_missing_file_is_one_sentence(tmp_path):
    script = str(RECIPES / "ct64.py")
    done = subprocess.run([sys.executable, script, str(tmp_path / "none.zip")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "none.zip" in done.stderr and len(done.stderr.splitlines()) == 1
