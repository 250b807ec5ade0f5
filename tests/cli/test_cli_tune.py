"""`backdrift tune`: a plan is tuned, kept in the run, and used by `sample` at that budget and guidance alone."""

import shutil

import pytest
import torch

import backdrift as bd
from backdrift.sample.plan import Plan

LITTLE = ("--noises", 8, "--updates", 2)


@pytest.fixture(scope="module")
def tuned_run(digits_run, tmp_path_factory):
    """A copy of the small run with a plan of 5 evaluations."""
    run = shutil.copytree(digits_run, tmp_path_factory.mktemp("tuned") / "run")
    schedule = bd.load(run).denoiser.process.schedule
    bd.solvers.Euler().plan(schedule, bd.grids.Angle().times(schedule, 5)).save(run / "plans" / "tuned-5.json")
    return run


def test_a_tuned_plan_is_kept_and_used_from_then_on(cli, tuned_run, tmp_path):
    status, out, _ = cli("tune", tuned_run, "--nfe", 5, *LITTLE)
    path = tuned_run / "plans" / "tuned-5.json"
    assert status == 0 and f"plan    {path}" in out and "8 fresh noises" in out
    assert all(name in out for name in ("default ", "searched grid", "tuned ", "median", "rms"))
    report = path.with_suffix(".html").read_text()
    assert (
        f"report  {path.with_suffix('.html')}" in out and "<svg" in report and "http" not in report.split("</style>")[1]
    )
    plan = Plan.load(path)
    assert plan.evaluations == 5 and plan.guidance is None

    status, out, _ = cli("sample", tuned_run, "--steps", 5, "--n", 4, "--out", tmp_path / "a.png")
    assert status == 0 and f"using the tuned plan  {path}" in out
    cli("sample", tuned_run, "--plan", path, "--n", 4, "--out", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    model = bd.load(tuned_run)
    assert torch.equal(model.sample(2, steps=5), model.sample(2, plan=plan))
    assert not torch.equal(model.sample(2, steps=5), model.sample(2, steps=5, solver=bd.solvers.DDIM()))


@pytest.mark.parametrize(
    "words",
    [
        ("--steps", 4),
        ("--steps", 5, "--solver", "ddim"),
        ("--steps", 5, "--grid", "angle"),
        ("--steps", 5, "--label", 3, "--guidance", 1.5),
    ],
    ids=str,
)
def test_another_choice_is_not_overruled(cli, tuned_run, tmp_path, words):
    status, out, _ = cli("sample", tuned_run, *words, "--n", 2, "--out", tmp_path / "a.png")
    assert status == 0 and "tuned plan" not in out


def test_a_plan_for_a_guidance_weight(cli, refused, tuned_run, tmp_path):
    assert cli("tune", tuned_run, "--nfe", 3, "--guidance", 2, "--label", 3, 5, *LITTLE).status == 0
    path = tuned_run / "plans" / "tuned-3-guidance-2.json"
    assert Plan.load(path).guidance == 2
    words = ("--n", 2, "--out", tmp_path / "a.png", "--label", 3)
    assert f"using the tuned plan  {path}" in cli("sample", tuned_run, "--steps", 3, "--guidance", 2, *words).out
    assert "tuned plan" not in cli("sample", tuned_run, "--steps", 3, *words).out
    sentence = refused("sample", tuned_run, "--plan", path, *words)
    assert "This plan was made for guidance 2, but the denoiser has none." in sentence


@pytest.mark.parametrize(
    "command, sentence",
    [
        ("tune", "PATH is missing"),
        ("tune nowhere", "There is no run folder nowhere"),
        ("tune .", "is not a run folder"),
        ("tune RUN other", "cannot use 'other'"),
        ("tune RUN --nfe 0", "tuned for 1 to 24 evaluations, not 0"),
        ("tune RUN --nfe 2000", "tuned for 1 to 24 evaluations, not 2000; with more, use the default sampler"),
        ("tune RUN --nfe 2.5", "--nfe takes a whole number, not '2.5'"),
        ("tune RUN --steps 5", "no option --steps"),
        ("tune RUN --noises 0", "at least 1 noise, 1 a batch, 1 update and a rate > 0, not 0,"),
        ("tune RUN --updates -3", "at least 1 noise, 1 a batch, 1 update"),
        ("tune RUN --guidance -1", "A guidance weight is 0"),
        ("tune RUN --label", "--label needs a value"),
        ("tune RUN --label cat", "There is no label 'cat'"),
        ("tune RUN --label 12", "There is no label '12'; the labels are 0 to 9"),
        ("tune RUN --device abacus", "device 'abacus' cannot be used here"),
        ("tune RUN --net mine.py", "is named as my_file.py:Net"),
    ],
)
def test_mistakes_in_tuning(refused, digits_run, tmp_path, monkeypatch, command, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(*(word.replace("RUN", str(digits_run)) for word in command.split()))
    assert list(tmp_path.iterdir()) == [] and not (digits_run / "plans").exists()
