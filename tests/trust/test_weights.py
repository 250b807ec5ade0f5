"""Path weights: unbiased for the evidence, exact where the chain is, and a repair that works."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.exact import Gaussian, Mixture
from backdrift.inverse import DPS, TMPD, Exact, Linear, PiGDM
from backdrift.noise import Noise
from backdrift.process import Gaussian as Process
from backdrift.trust import Reweighted, Verdict, diagnose, path_weights
from backdrift.trust.weights import pareto

VP = Process(bd.schedule.VP())
MIX = Mixture(
    torch.tensor([0.3, 0.3, 0.4]),
    torch.tensor([[-1.5, 0.5], [1.5, 0.5], [0.0, -1.5]]).double(),
    torch.tensor([0.09, 0.16, 0.25]),
)
SEEN, Y = Linear(torch.tensor([[1.0, 0.5]]).double(), 0.3), torch.tensor([0.8]).double()
ANCESTRAL = Exact(solver=bd.solvers.DDIM(eta=1.0))


def log_evidence(prior, y):
    """log p(y) of a mixture, from its definition."""
    A, gamma = SEEN.A, 0.09
    means = prior.means @ A[0]
    variances = prior.eigenvalues[:, 0] * A.square().sum() + gamma
    terms = prior.log_weights - (y - means) ** 2 / (2 * variances) - (2 * math.pi * variances).log() / 2
    return float(terms.logsumexp(0))


@pytest.mark.parametrize(
    ("n", "steps"), [(3000, 60), pytest.param(20000, 200, marks=pytest.mark.slow)], ids=["fast", "slow"]
)
def test_the_table_of_path_weights(n, steps):
    """Unguided, PiGDM and exact paths all give p(y); the bound rises from one to the next; DPS's tail is too heavy."""
    true = log_evidence(MIX, Y)
    samplers = {"none": DPS(strength=0.0), "DPS": DPS(), "PiGDM": PiGDM(), "exact": ANCESTRAL}
    found = {
        name: path_weights(s, MIX.denoiser(VP), SEEN, Y, n, steps=steps, noise=Noise.of(5, n))
        for name, s in samplers.items()
    }
    for name in ("none", "PiGDM", "exact"):
        weights = found[name]
        # the chain's own evidence differs from the data's by the discretisation, a few hundredths
        assert weights.log_evidence == pytest.approx(true, abs=4 * weights.evidence_error + 0.03), name
        assert weights.elbo < true
    assert found["none"].elbo < found["PiGDM"].elbo < found["exact"].elbo
    assert found["none"].std > found["PiGDM"].std > found["exact"].std
    # what is left of the exact chain's is its discretisation
    assert found["exact"].share > max(0.45, 1.3 * found["PiGDM"].share)
    assert found["exact"].gap < 30 / steps < found["PiGDM"].gap
    assert found["DPS"].share < 0.05 and found["DPS"].tail > 0.7 > found["exact"].tail
    assert abs(found["none"].from_prior) < 1e-9 < found["PiGDM"].from_prior
    assert len(found["PiGDM"].times) == len(found["PiGDM"].faults) == steps - 1


def test_exact_chains_have_equal_weights_as_steps_grow():
    prior = Gaussian(torch.zeros(1).double(), torch.tensor(1.0).double())
    seen, y = Linear(torch.ones(1, 1).double(), 0.5), torch.tensor([0.7]).double()
    stds = [
        path_weights(ANCESTRAL, prior.denoiser(VP), seen, y, 2000, steps=steps, noise=Noise.of(0, 2000)).std
        for steps in (20, 80)
    ]
    assert stds[1] < 0.6 * stds[0] < 0.4


@pytest.mark.parametrize("k", [0.2, 0.6, 1.2])
def test_tail_of_pareto_weights(k):
    u = torch.rand(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert pareto(-k * u.log()) == pytest.approx(k, abs=0.12)
    assert pareto(torch.zeros(1000).double()) == -math.inf and math.isnan(pareto(torch.zeros(20).double()))


def test_weights_put_a_hallucinating_sampler_right():
    prior = Mixture(torch.ones(2), torch.tensor([[-1.5], [1.5]]).double(), 0.09)
    seen, y = Linear(torch.ones(1, 1).double(), 0.8), torch.tensor([1.0]).double()
    assert diagnose(TMPD(), prior, seen, y, n=600, steps=60).finding("weights of the modes").verdict is Verdict.FAIL
    after = diagnose(Reweighted(base=TMPD(), particles=24), prior, seen, y, n=600, steps=60)
    assert after.finding("weights of the modes").verdict is Verdict.PASS, after.lines()


def test_a_draw_owns_its_particles_and_its_measurement():
    sampler = Reweighted(base=TMPD(), particles=4)
    y = torch.tensor([[0.8], [-0.5], [0.1]]).double()
    together = sampler(MIX.denoiser(VP), SEEN, y, 3, steps=9, noise=Noise.of(1, 3))
    alone = sampler(MIX.denoiser(VP), SEEN, y[2], 1, steps=9, noise=Noise(1, torch.tensor([2])))
    torch.testing.assert_close(together[2:], alone, rtol=1e-9, atol=1e-9)


def test_paths_without_noise_have_no_weights():
    with pytest.raises(UserError, match="no chain"):
        path_weights(TMPD(solver=bd.solvers.DDIM()), MIX.denoiser(VP), SEEN, Y, 10, steps=5, noise=Noise.of(0, 10))
    with pytest.raises(UserError, match="at least 2"):
        Reweighted(base=TMPD(), particles=1)
