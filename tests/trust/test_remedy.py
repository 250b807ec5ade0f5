"""After a FAIL: the rung that is to blame, and a remedy that is judged like everything else."""

from dataclasses import replace

import torch

import backdrift as bd
from backdrift.exact import Gaussian, Mixture
from backdrift.inverse import TMPD, Exact, Linear
from backdrift.process import Gaussian as Process
from backdrift.trust import Verdict, advice, diagnose, remedied
from backdrift.trust.remedy import blame

SEEN, Y = Linear(torch.ones(1, 1).double(), 0.8), torch.tensor([1.0]).double()
TWO = Mixture(torch.ones(2), torch.tensor([[-1.5], [1.5]]).double(), 0.09)


def test_an_approximation_is_put_right_by_its_own_weights():
    found = remedied(diagnose(TMPD(), TWO, SEEN, Y, n=600, steps=40))
    assert found.verdict is Verdict.FAIL and blame(found) == "sampler"
    words, after = found.remedy
    assert "path weight" in words and after.verdict is not Verdict.FAIL, after.lines()
    assert after.finding("weights of the modes").verdict is Verdict.PASS
    assert "which comes to" in advice(found) and found.to_dict()["remedy"]["name"] == words


def test_who_is_to_blame():
    coarse = diagnose(Exact(solver=bd.solvers.DDIM(eta=1.0)), TWO, SEEN, Y, n=400, steps=4)
    assert blame(coarse) == "sampler"  # which is the integrator here
    prior = Gaussian(torch.tensor([1.5]).double(), 0.09)
    other = Gaussian(torch.tensor([2.5]).double(), 0.09).denoiser(Process(bd.schedule.VP()))
    network = diagnose(TMPD(), prior, SEEN, Y, n=400, steps=60, learned=other)
    assert blame(network) == "learned" and remedied(network).remedy is None
    assert "trained network is" in advice(network)
    assert blame(replace(network, findings=())) == ""
