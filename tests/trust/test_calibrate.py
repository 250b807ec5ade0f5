"""Calibration: uniform for exact samplers, and off for each that is broken, without an exact posterior."""

import pytest
import torch
from mutants import MUTANTS, PRIOR, SEEN

import backdrift as bd
from backdrift import UserError
from backdrift.exact import Atoms, Gaussian, Mixture
from backdrift.inverse import TMPD, Exact
from backdrift.process import Gaussian as Process
from backdrift.trust import Verdict, against, calibrate, extraction, seeds_agree
from backdrift.trust.calibrate import LEVELS, covered
from backdrift.trust.ranks import judged, rank

DENOISER = PRIOR.denoiser(Process(bd.schedule.VP()))


def run(sampler, runs=200, draws=30, seed=0, steps=40):
    return calibrate(sampler, DENOISER, SEEN, PRIOR.draw(runs, seed=seed + 100), draws=draws, steps=steps, seed=seed)


def test_the_exact_sampler_is_calibrated():
    found = run(Exact(), runs=500, draws=40)
    assert found.verdict is Verdict.PASS, found.lines()
    assert found.coverage.shape == (3, 2) and found.ranks["log p(y | x)"].shape == (500,)


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(100), marks=pytest.mark.slow)])
def test_exact_samplers_fail_at_most_at_the_nominal_rate(seeds):
    failed = sum(run(Exact(), runs=60, draws=19, seed=seed).verdict is Verdict.FAIL for seed in seeds)
    assert failed <= 0.05 * len(seeds)


CAUGHT = ["prior draws", "posterior mean", "most probable", "averages of draws", "forgets y"]


@pytest.mark.parametrize("name", CAUGHT)
def test_calibration_catches(name):
    found = run(MUTANTS[name])
    assert found.verdict is Verdict.FAIL, found.lines()


SUBTLE = ["dropped mode", "half the variance", "tempered weights", "repeated draws", "chained draws"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBTLE)
def test_calibration_catches_with_more_runs(name):
    found = run(MUTANTS[name], runs=500, draws=40)
    assert found.verdict is Verdict.FAIL, found.lines()


def test_only_statistics_of_y_see_prior_draws():
    found = run(MUTANTS["prior draws"])
    lines = {name: u for name, u in found.ranks.items() if name.startswith("line") or name == "squared norm"}
    assert all(f.verdict is not Verdict.FAIL for f in judged(lines, 0.05))
    assert judged({"fit": found.ranks["log p(y | x)"]}, 0.05)[0].verdict is Verdict.FAIL


def test_many_measurements_in_one_call_are_as_one_by_one():
    one = lambda *words, **options: TMPD()(*words, **options)  # noqa: E731 - hides that it takes many
    truths = PRIOR.draw(50, seed=3)
    together = calibrate(TMPD(), DENOISER, SEEN, truths, draws=10, steps=5)
    apart = calibrate(one, DENOISER, SEEN, truths, draws=10, steps=5)
    assert together.ranks.keys() == apart.ranks.keys()
    gap = (together.ranks["squared norm"] - apart.ranks["squared norm"]).abs().mean()
    assert 0 < gap < 0.2  # other noise, the same law


def test_ranks_are_uniform_with_ties_too():
    g = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 3, (4000, 8), generator=g).double()
    u = rank(draws[:, 0], draws[:, 1:], torch.rand(4000, generator=g).double())
    assert all(f.verdict is Verdict.PASS for f in judged({"x": u}, 0.05))
    assert float(rank(torch.tensor([5.0]), torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0.5]))) == 0.875


def test_intervals_cover_what_they_say_at_any_number_of_draws():
    for L in (10, 33):
        x = torch.arange(L, dtype=torch.float64).expand(L + 1, L)
        truths = torch.arange(L + 1).double() - 0.5  # every rank once
        torch.testing.assert_close(covered(x, truths).mean(1), torch.tensor(LEVELS).double())
    same = covered(torch.zeros(1, 10).double(), torch.zeros(1).double())
    torch.testing.assert_close(same[:, 0], torch.tensor(LEVELS).double())  # ties: any rank


def test_unconditional_samples_against_an_exact_law():
    C = torch.tensor([[1.0, 0.6], [0.0, 0.5]]).double()
    law = Mixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(), (C @ C.mT)[None])
    x = law.draw(3000, seed=5)
    assert against(x, law).verdict is Verdict.PASS
    for wrong in (x + 0.5, 0.7 * x, x[torch.arange(3000) % 2 == 0].repeat(2, 1) * torch.tensor([1.0, -1.0])):
        assert against(wrong, law).verdict is Verdict.FAIL
    atoms = Atoms(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double())
    assert against(atoms.draw(2000, seed=1), atoms, blur=0.1).verdict is Verdict.PASS
    assert against(torch.randn(2000, 3).double() * 2, atoms, blur=0.1).verdict is Verdict.FAIL
    with pytest.raises(UserError, match="give blur"):
        against(atoms.draw(100), atoms)
    with pytest.raises(UserError, match="events"):
        against(torch.zeros(5, 2), atoms, blur=0.1)


def test_a_sampler_of_ours_against_the_law_it_should_have():
    law = Mixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(), 0.2)
    denoiser = law.denoiser(Process(bd.schedule.VP()))
    fine = bd.sample(denoiser, shape=(1500, 2), solver=bd.solvers.DDIM(eta=1.0), steps=80)
    coarse = bd.sample(denoiser, shape=(1500, 2), solver=bd.solvers.DDIM(eta=1.0), steps=3)
    assert against(fine, law).verdict is not Verdict.FAIL and against(coarse, law).verdict is Verdict.FAIL


def test_near_copies_are_found_and_smooth_pictures_are_not():
    g = torch.Generator().manual_seed(0)
    train, heldout, fresh = (torch.randn(n, 1, 6, 6, generator=g) for n in (400, 60, 100))
    copies = 0.9 * train[:5] + 0.05 + 0.05 * torch.randn(5, 1, 6, 6, generator=g)
    found = extraction(torch.cat([fresh, copies, 0.1 * fresh[:20]]), train, heldout)
    assert {(i, j) for i, j, _ in found.copies} >= {(100 + k, k) for k in range(5)}
    assert len(found.copies) <= 5 + 6 and not any(i >= 105 for i, _, _ in found.copies)
    assert "held-out" in found.line()
    with pytest.raises(UserError, match="one shape"):
        extraction(fresh, train, heldout[..., 1:])


def test_models_agree_on_one_noise_or_do_not():
    process = Process(bd.schedule.VP())
    g = torch.Generator().manual_seed(0)
    points = torch.randn(40, 4, generator=g).double()
    whole, law = Atoms(points).denoiser(process), Gaussian(torch.zeros(4).double(), 1.0).denoiser(process)
    assert seeds_agree(whole, whole, 32, steps=10).share == 0
    halves = [Atoms(part).denoiser(process) for part in points.split(20)]
    learned = [Gaussian(torch.full((4,), 0.01 * k).double(), 1.0).denoiser(process) for k in (0, 1)]
    memory, rule = seeds_agree(*halves, 64, steps=20), seeds_agree(*learned, 64, steps=20)
    assert memory.low > 0.3 and rule.high < 0.05
    assert law.event_shape == whole.event_shape


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="at least 50 truths"):
        run(Exact(), runs=10)
    with pytest.raises(UserError, match="takes events"):
        calibrate(Exact(), DENOISER, SEEN, torch.zeros(60, 3))
