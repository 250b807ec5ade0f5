"""`backdrift train --task classifier`: a run like any other, and what it guides."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import backdrift as bd
from backdrift.cli import main
from backdrift.evaluate.noisy import accuracy_by_noise, bayes
from backdrift.guide import Classifier, exact_classifier
from backdrift.objective import Classification
from backdrift.train.networks import HalfUNetChoice
from backdrift.train.options import for_pictures
from backdrift.train.training import Training
from command import TINY, save_photos


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    with pytest.raises(SystemExit) as ended:
        main(["train", "--task", "classifier", "--run", str(folder), *map(str, TINY)])
    assert ended.value.code == 0
    return folder


def test_a_run_like_any_other(cli, classifier_run, tmp_path):
    status, out, _ = cli("info", classifier_run)
    assert status == 0 and "8 of 8 steps" in out and "HalfUNet" in out
    report = (classifier_run / "report.html").read_text()
    assert "Accuracy by noise" in report and "cross-entropy" in report
    levels = json.loads((classifier_run / "accuracy.json").read_text())["levels"]
    assert len(levels) == 8 and all(level["n"] == 174 for level in levels)
    # Bayes' rule knows a picture that is hardly noisy, and guesses where there is noise alone
    assert levels[0]["bayes"] > 0.95 and levels[-1]["bayes"] < 0.4
    status, out, err = cli("train", "--task", "classifier", "--run", classifier_run, *TINY)
    assert status == 0 and "finished" in err and "--classifier" in out


def test_stopped_and_continued_is_the_same_bit_for_bit(cli, classifier_run, tmp_path, monkeypatch):
    advance = Training.advance

    def interrupted(self):
        if self.step == 4:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    run = tmp_path / "run"
    words = ("train", "--task", "classifier", "--run", run, *TINY)
    with monkeypatch.context() as patched:
        patched.setattr(Training, "advance", interrupted)
        assert cli(*words).status == 130
    assert cli(*words).status == 0
    last = "checkpoints/step-0000008.safetensors"
    assert (run / last).read_bytes() == (classifier_run / last).read_bytes()


def test_it_guides_from_the_command_line_as_from_python(cli, digits_run, classifier_run, tmp_path):
    words = ("--classifier", classifier_run, "--label", 3, "--guidance", 2, "--n", 3, "--steps", 4)
    assert cli("sample", digits_run, *words, "--out", tmp_path / "grid.png").status == 0
    model = bd.load(digits_run)
    guided = Classifier(model.denoiser, bd.load_classifier(classifier_run), 2.0)
    x = bd.sample(guided, shape=(3, 1, 8, 8), cond={"label": torch.full((3,), 3)}, steps=4)
    shown = bd.data.to_uint8(x)[:, 0].numpy()
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    corners = [(0, 0), (0, 66), (66, 0)]
    for (top, left), picture in zip(corners, shown, strict=True):
        np.testing.assert_array_equal(grid[top : top + 64 : 8, left : left + 64 : 8], picture)
    plain = bd.sample(model.denoiser, shape=(3, 1, 8, 8), steps=4)
    assert not torch.equal(x, plain)


def test_it_serves_a_model_of_another_schedule(classifier_run):
    """The answer depends on the state and its noise-to-signal ratio, not on the schedule that was trained on."""
    classifier = bd.load_classifier(classifier_run)
    torch.nn.init.normal_(classifier.net.exit.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    other = bd.process.Gaussian(bd.schedule.EDM())
    t = 0.5
    s = float(other.schedule.time(classifier.process.schedule.logsnr(t)))
    scale = float(other.schedule.alpha_sigma(s)[0] / classifier.process.schedule.alpha_sigma(t)[0])
    moved = classifier.on(other).logits(scale * x, s)
    torch.testing.assert_close(moved, classifier.logits(x, t), rtol=1e-4, atol=1e-5)


def test_bayes_rule_is_the_exact_posterior_of_the_pictures():
    points = torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(40) % 3
    process = bd.process.Gaussian(bd.schedule.VP())
    exact = bd.exact.Atoms(points, labels=labels).denoiser(process)
    t = 0.5
    alpha, sigma = (float(v) for v in process.schedule.alpha_sigma(t))
    x = alpha * points[:5] + sigma * torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    found = bayes(x, alpha * points, labels, sigma)
    log_prob = exact_classifier(exact)
    for k in range(3):
        expected = log_prob(x, t, {"label": torch.full((5,), k)}).exp()
        torch.testing.assert_close(found[:, k], expected, rtol=1e-5, atol=1e-9)


def test_it_learns(tmp_path):
    """Two kinds of stripes, told apart where there is little noise and not where there is much."""
    folder = tmp_path / "stripes"
    rng = np.random.default_rng(0)
    for k, name in enumerate(("across", "down")):
        (folder / name).mkdir(parents=True)
        for i in range(60):
            stripes = np.repeat(rng.integers(0, 256, (8, 1), dtype=np.uint8), 8, 1)
            Image.fromarray(stripes.T if k else stripes).save(folder / name / f"{i}.png")
    pictures = bd.data.pictures(folder)
    made = for_pictures(pictures)
    net = HalfUNetChoice(width=16, multipliers=(1, 2), blocks=1, attention=())
    options = replace(made, steps=80, batch=32, net=net, objective=Classification(), label_dropout=0.0, lr=5e-3)
    classifier = bd.train(pictures, options, progress=False)
    levels = accuracy_by_noise(classifier, pictures)
    assert levels[0].classifier.value > 0.9 and levels[-1].classifier.value < 0.9


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--network", "dit"), "does not use --network"),
        (("--target", "eps"), "does not use --target"),
        (("--label-dropout", 0.1), "does not use --label-dropout"),
        (("--self-conditioning",), "does not use the options of the loss"),
    ],
)
def test_options_of_a_denoiser_are_refused(refused, tmp_path, words, sentence):
    assert sentence in refused("train", "--task", "classifier", "--run", tmp_path / "run", *words)


def test_mistakes(refused, digits_run, classifier_run, tmp_path):
    assert "does not sample" in refused("sample", classifier_run)
    assert "holds no classifier" in refused("sample", digits_run, "--label", 3, "--classifier", digits_run)
    plain = save_photos(tmp_path / "plain", classes=("one",))
    for path in (plain / "one").iterdir():
        path.rename(plain / path.name)
    (plain / "one").rmdir()
    assert "needs labels" in refused("train", "--task", "classifier", "--data", plain, "--run", tmp_path / "run")
    colour = bd.exact.Gaussian(torch.zeros(3, 8, 8), 1.0).denoiser(bd.process.Gaussian(bd.schedule.VP()))
    with pytest.raises(bd.UserError, match=r"shape \(1, 8, 8\), not \(3, 8, 8\)"):
        Classifier(colour, bd.load_classifier(classifier_run))
    with pytest.raises(bd.UserError, match="a label from 0 to 9 for every sample"):
        bd.load_classifier(classifier_run)(torch.zeros(2, 1, 8, 8), 0.5, {"label": torch.tensor([3, 10])})
