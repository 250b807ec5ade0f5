"""The lens: right verdicts on samplers whose errors theory knows, and none invented on exact ones."""

import math

import pytest
import scipy.stats
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.exact import Atoms, Gaussian, Mixture
from backdrift.inverse import TMPD, Exact, Function, Linear, PiGDM
from backdrift.noise import Noise
from backdrift.process import Gaussian as Process
from backdrift.trust import Verdict, diagnose, law
from backdrift.trust.kernel import Kernel
from backdrift.trust.problem import Problem, effective
from backdrift.trust.verdict import Effect, decide, overall

VP = Process(bd.schedule.VP())
SEEN, Y = Linear(torch.ones(1, 1).double(), 0.8), torch.tensor([1.0]).double()
ONE = Gaussian(torch.tensor([1.5]).double(), torch.tensor(0.09).double())
TWO = Mixture(torch.ones(2), torch.tensor([[-1.5], [1.5]]).double(), 0.09)


@pytest.mark.parametrize("sampler", [PiGDM(prior_std=None), TMPD()])
def test_linear_measurement_and_unimodal_posterior_are_not_enough(sampler):
    """The central claim: the same measurement, a posterior of one mode; what fails is the prior's second mode."""
    assert float(TWO.given(SEEN, Y).weights.max()) > 0.98
    fine = diagnose(sampler, ONE, SEEN, Y, n=2000, steps=120)
    assert fine.verdict is Verdict.PASS, fine.lines()
    wrong = diagnose(sampler, TWO, SEEN, Y, n=2000, steps=120)
    assert wrong.verdict is Verdict.FAIL
    assert wrong.finding("weights of the modes").verdict is Verdict.FAIL
    assert wrong.finding("prior-mode hallucination").value > 0.07
    gap = {name: rung.effects["weights of the modes"].values.abs().max() for name, rung in wrong.rungs.items()}
    assert gap["exact"] < 0.02 and gap["integrator"] < 0.02 < 0.07 < gap["sampler"]


def test_the_exact_score_in_an_integrator_passes():
    found = diagnose(
        Exact(solver=bd.solvers.DDIM(eta=1.0)), TWO, SEEN, torch.tensor([0.15]).double(), n=2000, steps=250
    )
    assert found.verdict is Verdict.PASS, found.lines()
    assert found.finding("error budget").value == 0
    assert list(found.rungs) == ["exact", "sampler"]
    coarse = diagnose(Exact(solver=bd.solvers.DDIM(eta=1.0)), ONE, SEEN, Y, n=1000, steps=8)
    assert coarse.verdict is Verdict.FAIL and coarse.finding("spread").value < -0.2


def test_a_foreign_sampler_without_on_step_is_judged_by_its_end():
    def foreign(denoiser, measurement, y, n, *, steps, noise):
        return denoiser.distribution.given(measurement, y).draw(n, noise.seed)

    found = diagnose(foreign, TWO, SEEN, Y, n=1500)
    assert found.verdict is not Verdict.FAIL and found.finding("weights of the modes").verdict is Verdict.PASS
    for name in ("spread over time", "early stopping", "error budget"):
        assert found.finding(name).verdict is Verdict.NOT_APPLICABLE
    with pytest.raises(UserError, match="returned draws of shape"):
        diagnose(lambda d, m, y, n, *, steps, noise: torch.zeros(n, 3), TWO, SEEN, Y)
    broken = diagnose(lambda d, m, y, n, *, steps, noise: torch.full((n, 1), torch.nan), TWO, SEEN, Y)
    assert broken.verdict is Verdict.FAIL and "not numbers" in broken.lines()[1]


def test_a_learned_denoiser_is_the_last_rung():
    shifted = Mixture(torch.ones(2), torch.tensor([[-1.5], [1.9]]).double(), 0.04).denoiser(VP)
    one = Exact(solver=bd.solvers.DDIM(eta=1.0))
    found = diagnose(TMPD(), ONE, SEEN, Y, n=400, steps=60, learned=shifted)
    assert list(found.rungs) == ["exact", "integrator", "sampler", "learned"]
    distance = {name: float(rung.effects["distance"].values[0]) for name, rung in found.rungs.items()}
    assert distance["sampler"] < 0.3 < distance["learned"]
    assert found.finding("distance").rungs["learned"] == pytest.approx(distance["learned"])
    with pytest.raises(UserError, match="exact priors"):
        diagnose(one, ONE, SEEN, Y, n=400, steps=5, learned=bd.Network(torch.nn.Identity(), VP, bd.target.X0(), (1,)))


def test_a_posterior_of_one_atom_is_refused_with_a_noise_that_is_not():
    atoms = Atoms(torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).double())
    y = atoms.points[3, :3]
    with pytest.raises(UserError, match=r"1\.\d\d effective atoms.* standard deviation") as caught:
        diagnose(Exact(), atoms, Linear(torch.eye(6)[:3].double(), 0.01), y)
    advised = float(str(caught.value).split("deviation ")[1].split()[0])
    again = Problem(atoms, Linear(torch.eye(6)[:3].double(), advised), y, VP)
    assert effective(again.posterior.log_weights) == pytest.approx(5, rel=0.02)


def test_atoms_under_a_measurement_that_is_not_linear(tmp_path):
    atoms = Atoms(torch.randn(60, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double())
    square = Function(lambda x: x.square().flatten(1)[:, :2], (1, 2, 2), 0.5)
    y = torch.tensor([0.3, 1.0]).double()
    found = diagnose(Exact(), atoms, square, y, n=800)
    assert found.verdict is not Verdict.FAIL and "part" in found.modes[0].name, found.lines()
    prior = diagnose(lambda d, m, y, n, *, steps, noise: atoms.draw(n, noise.seed), atoms, square, y, n=800)
    assert prior.verdict is Verdict.FAIL
    page = prior.to_html(tmp_path / "lens.html").read_text()
    assert "FAIL" in page and page.count("<svg") >= 2 and page.count("data:image/png") >= 3


def test_the_page_shows_the_way(tmp_path):
    page = diagnose(TMPD(), TWO, SEEN, Y, n=400, steps=40).to_html(tmp_path / "lens.html").read_text()
    for words in ("Spread over the exact one", "Divergence added per step", "red too much", "prior-mode", "integrator"):
        assert words in page


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(200), marks=pytest.mark.slow)])
def test_the_exact_sampler_fails_at_most_at_the_nominal_rate(seeds):
    y, prior = torch.tensor([0.4]).double(), Mixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]).double(), 0.09)
    failed = sum(diagnose(Exact(), prior, SEEN, y, n=300, seed=seed).verdict is Verdict.FAIL for seed in seeds)
    assert failed <= 0.05 * len(seeds)


# ------------------------------------------------------------------------------------------------ the parts


def test_verdicts_by_interval_and_limit():
    def verdict(value, error, critical=3.0, signed=True):
        effect = Effect("e", ("a", "b"), torch.tensor([0.0, value]), torch.tensor([0.01, error]), 0.1, signed)
        return decide(effect, critical).verdict

    assert verdict(0.05, 0.02) is Verdict.PASS and verdict(0.05, 0.03) is Verdict.INCONCLUSIVE
    assert verdict(-0.17, 0.02) is Verdict.FAIL and verdict(-0.17, 0.02, signed=False) is Verdict.PASS
    assert verdict(0.17, 0.03) is Verdict.INCONCLUSIVE  # surely beyond by itself, not among many
    assert overall([]) is Verdict.NOT_APPLICABLE


def test_wasserstein_is_scipys():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(500, 1, generator=g).double(), torch.rand(2000, 1, generator=g).double()
    ours = float(law.wasserstein(a, b.mT.sort(1).values))
    assert ours == pytest.approx(scipy.stats.wasserstein_distance(a[:, 0], b[:, 0]), abs=2e-3)


def test_jackknife_error_of_a_mean():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1)).double()
    value, error = law.jackknife(lambda keep: x[keep].mean(), len(x))
    assert value == x.mean() and float(error) == pytest.approx(1 / math.sqrt(5000), rel=0.35)


def test_kernels_are_the_processes_bridges():
    kernel = Kernel.of(PiGDM(), VP, 7)
    x, D = torch.tensor([[0.7]]).double(), torch.tensor([[0.3]]).double()
    for n, (t, s) in enumerate(zip(kernel.times, (*kernel.times[1:], 0.0), strict=True)):
        draws = VP.bridge(
            x.expand(4000, 1), bd.denoiser.TensorPosterior(D.expand(4000, 1)), t, s, Noise.of(n, 4000).at("b")
        )
        mean = float(kernel.keep[n] * x + kernel.gain[n] * D)
        assert mean == pytest.approx(float(draws.mean()), abs=5 * kernel.std[n] / 4000**0.5 + 1e-9)
        assert kernel.std[n] == pytest.approx(float(draws.std()), rel=0.06, abs=1e-9)
    assert Kernel.of(PiGDM(solver=bd.solvers.DDIM()), VP, 7) is None
    assert Kernel.of(PiGDM(solver=bd.solvers.Heun()), VP, 7) is None


def test_the_budget_bounds_the_divergence_and_is_exact_for_gaussians():
    """On a Gaussian every chain is affine: KL of the ends <= the budget, which is the KL of the paths."""
    prior = Gaussian(torch.zeros(1).double(), torch.tensor(1.0).double())
    sampler = PiGDM(prior_std=None)
    found = diagnose(sampler, prior, SEEN, Y, n=1500, steps=40)
    nats, _ = found.rungs["sampler"].watch.nats()
    x, exact = found.rungs["sampler"].pictures[:, 0], found.problem.posterior
    mean, var = float(exact.means[0, 0]), float(exact.eigenvalues[0, 0])
    divergence = (float(x.var()) / var + (float(x.mean()) - mean) ** 2 / var - 1 - math.log(float(x.var()) / var)) / 2
    assert 0 < divergence < 1.1 * nats


def test_what_lies_off_the_prior_and_against_y():
    problem = Problem(TWO, SEEN, Y, VP)
    draws = problem.look(torch.tensor([[1.4], [-1.5], [0.0], [4.0]]).double())
    assert draws.modes.tolist()[:2] == [1, 0]
    assert draws.contradicts.tolist() == [False, True, False, True]
    assert draws.off.tolist() == [False, False, True, True]
    seen = Problem(Gaussian(torch.zeros(2).double(), 1.0), Linear(torch.tensor([[3.0, 0.0]]).double(), 1.0), Y, VP).seen
    torch.testing.assert_close(seen.abs(), torch.tensor([[1.0], [0.0]]).double())
