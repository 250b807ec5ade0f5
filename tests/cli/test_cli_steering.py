"""How guidance acts, by options of `backdrift sample`: each is the call in Python that it names."""

import numpy as np
import pytest
import torch
from PIL import Image

import backdrift as bd
from backdrift.fewstep.consistency import ConsistencyDistillation
from backdrift.guide import Annealed, AutoGuidance, ClassifierFree, Interval, Projected, Rescaled
from backdrift.model import unguided
from command import TINY


def pictures(path, count):
    grid = np.asarray(Image.open(path))
    columns = int(np.ceil(np.sqrt(count)))
    return [
        grid[66 * r : 66 * r + 64 : 8, 66 * c : 66 * c + 64 : 8] for r, c in (divmod(i, columns) for i in range(count))
    ]


@pytest.fixture
def model(digits_run):
    return bd.load(digits_run)


CASES = {
    "--interval 0.2 5": lambda d, labels: ClassifierFree(d, Interval(3.0, 0.2, 5.0)),
    "--against 8": lambda d, labels: ClassifierFree(d, 3.0, against={"label": 8}),
    "--rescale 0.7": lambda d, labels: ClassifierFree(d, 3.0, mixing=Rescaled(0.7)),
    "--project": lambda d, labels: ClassifierFree(d, 3.0, mixing=Projected()),
    "--anneal 0.5 5": lambda d, labels: ClassifierFree(Annealed(d, 0.5, 5.0), 3.0),
    "--interval 0.2 5 --rescale 0.5": lambda d, labels: ClassifierFree(
        d, Interval(3.0, 0.2, 5.0), mixing=Rescaled(0.5)
    ),
}


@pytest.mark.parametrize("words", CASES)
def test_options_are_the_calls_that_they_name(cli, digits_run, model, tmp_path, words):
    out = tmp_path / "grid.png"
    common = ("--label", 3, 5, "--guidance", 3, "--steps", 3, "--index", 4, 7, 9, 2)
    assert cli("sample", digits_run, *common, *words.split(), "--out", out).status == 0
    index = [4, 7, 9, 2]
    labels = torch.tensor([(3, 5)[i % 2] for i in index])
    guided = CASES[words](model.denoiser, labels)
    cond = {"label": labels, "sample": torch.tensor(index)}
    x = bd.sample(guided, index=index, cond=cond, steps=3)
    for mine, theirs in zip(pictures(out, 4), bd.data.to_uint8(x)[:, 0].numpy(), strict=True):
        assert abs(mine.astype(int) - theirs).max() <= 1


def test_away_from_a_weaker_run(cli, digits_run, model, tmp_path):
    out = tmp_path / "grid.png"
    words = ("--label", 3, "--guidance", 2, "--n", 2, "--steps", 3, "--weak", digits_run)
    assert cli("sample", digits_run, *words, "--out", out).status == 0
    x = bd.sample(
        AutoGuidance(model.denoiser, model.denoiser, 2.0), index=[0, 1], cond={"label": torch.full((2,), 3)}, steps=3
    )
    for mine, theirs in zip(pictures(out, 2), bd.data.to_uint8(x)[:, 0].numpy(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_folder_remembers_the_steering(cli, refused, digits_run, tmp_path):
    words = ("sample", digits_run, "--label", 3, "--guidance", 3, "--n", 2, "--steps", 2, "--out", tmp_path / "out")
    assert cli(*words, "--rescale", 0.5).status == 0
    assert "rescale 0.5, not None" in refused(*words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--label 3 --interval 1 2", "give a --guidance other than 1"),
        ("--guidance 3 --interval 1 2", "such as --label 3"),
        ("--label 3 --guidance 3 --interval 2 1", "low < high"),
        ("--label 3 --guidance 3 --against 12", "no label '12'"),
        ("--label 3 --guidance 3 --rescale 2", "share from 0 to 1"),
        ("--label 3 --guidance 3 --rescale 0.5 --project", "give one of them"),
        ("--label 3 --guidance 3 --weak gone", "no run folder gone"),
        ("--label 3 --guidance 3 --weak gone --against 4", "give one of them"),
        ("--label 3 --guidance 3 --classifier gone --project", "leave out it or --classifier"),
        ("--label 3 --guidance nan", "A guidance weight is 0"),
        ("--label 3 --guidance -2", "A guidance weight is 0"),
        ("--label 3 --guidance inf", "A guidance weight is 0"),
        ("--guidance 2", "needs a condition to follow"),
        ("--label 12", "no label '12'"),
    ],
)
def test_mistakes(refused, digits_run, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused("sample", digits_run, *words.split())


def test_a_run_that_never_hid_a_label_is_not_guided_away_from_having_none(cli, refused, digits_run, tmp_path):
    run = tmp_path / "run"
    assert cli("train", "--run", run, *TINY, "--label-dropout", 0).status == 0
    report = (run / "report.html").read_text()
    assert "guidance 1, 10 evaluations" in report and "guidance 2" not in report
    words = ("sample", run, "--label", 3, "--n", 2, "--steps", 2, "--out", tmp_path / "grid.png")
    for further in ((), ("--interval", 0.1, 2)):
        assert "saw every condition in training" in refused(*words, "--guidance", 2, *further)
    assert "saw every condition" in refused("sweep", run, "--weights", 1, 2, "--n", 20)
    assert cli(*words).status == 0 and cli(*words, "--guidance", 2, "--weak", digits_run).status == 0


def test_a_student_has_the_guidance_that_it_was_distilled_with():
    options = bd.TrainOptions(objective=ConsistencyDistillation(steps=8, guidance=2.0))
    assert "distilled at guidance 2" in unguided(options) and unguided(bd.TrainOptions()) == ""
    denoiser = bd.exact.Gaussian(torch.zeros(2), 1.0).denoiser(bd.process.Gaussian(bd.schedule.VP()))
    student = bd.Model(denoiser, ("a", "b"), unguided=unguided(options))
    with pytest.raises(bd.UserError, match="no other can be asked for"):
        student.sample(2, label=1, guidance=3.0)
