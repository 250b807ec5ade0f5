"""Self-conditioning: what the net is shown in training and in sampling, and that the denoiser stays a function."""

import math

import pytest
import torch
from torch import nn

from backdrift import objective as obj
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.objective.base import Samples
from backdrift.process import Gaussian
from backdrift.sample import sample
from backdrift.sample.solvers import DDIM
from backdrift.schedule import Flow
from backdrift.target import X0


class Watched(nn.Module):
    """2 x + 3 estimate + noise, remembering its estimates; x and estimate are the two halves of its input."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.shown, self.conds = [], []

    def forward(self, x, noise, cond=None):
        x, estimate = x.chunk(2, 1)
        self.shown.append(estimate)
        self.conds.append(cond)
        return self.scale * (2 * x + 3 * estimate + noise[:, None])


def network(net):
    return Network(net, Gaussian(Flow()), X0(), (2,), sigma_data=0.5, self_conditioning=True)


def test_without_an_estimate_the_denoiser_makes_its_own():
    net = Watched()
    den, xt = network(net), torch.tensor([[0.3, -1.0], [0.7, 0.2]], dtype=torch.float64)
    cond = {"label": torch.tensor([1, 2])}
    found = den(xt, 0.4, cond).mean
    scale, noise = 1 / math.hypot(0.4, 0.6 * 0.5), math.atan2(0.4, 0.6 * 0.5)
    first = 2 * scale * xt + noise
    torch.testing.assert_close(found, 2 * scale * xt + 3 * first / 0.5 + noise, rtol=1e-6, atol=0)
    assert [tuple(c) for c in net.conds] == [("label",)] * 2  # the estimate is no condition of the net
    torch.testing.assert_close(den(xt, 0.4, {**cond, "estimate": first}).mean, found, rtol=1e-6, atol=0)
    torch.testing.assert_close(den.first_estimate(xt, 0.4, cond), first, rtol=1e-6, atol=0)
    assert list(cond) == ["label"]


def test_half_of_a_training_sees_the_first_answer_and_no_gradient_passes_it():
    net, n = Watched(), 400
    den, x0 = network(net).train(), torch.ones(n, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    given = Samples(x0, t, {"label": torch.arange(n)}, Noise.of(0, n), torch.ones_like(t), torch.ones_like(t), t, t)
    losses = obj.Denoising(self_conditioning=0.5).losses(den, nn.Identity(), given)
    first, shown = net.shown
    assert not first.any() and not shown.requires_grad
    seen = shown.any(1)
    assert abs(float(seen.double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(n)
    assert torch.equal(net.conds[0]["label"], torch.arange(n)[seen])
    xt = den.process.corrupt(x0, t, given.noise)
    torch.testing.assert_close(shown[seen], den.first_estimate(xt, t)[seen] / 0.5)
    losses.total.sum().backward()
    assert net.scale.grad is not None
    # sample by sample, whatever the batch
    part = Samples(x0[:3], t[7:10], {}, Noise(0, torch.tensor([7, 8, 9])), t[:3], t[:3], t[:3], t[:3])
    obj.Denoising(self_conditioning=0.5).losses(den, nn.Identity(), part)
    torch.testing.assert_close(net.shown[-1], shown[7:10])


def test_every_solver_runs_it():
    net = Watched()
    den = network(net).eval()
    with torch.no_grad():
        net.scale.fill_(0.1)
        plain = sample(den, torch.ones(2, 2, dtype=torch.float64), solver=DDIM(), steps=3)
    assert plain.isfinite().all() and len(net.shown) == 6


def test_shares_are_shares():
    with pytest.raises(UserError, match="share of the samples"):
        obj.Denoising(self_conditioning=1.5)
    assert not obj.Denoising().estimating and obj.Denoising(self_conditioning=0.5).estimating
