"""The learned uncertainty finds the log of the expected loss, and weighs the network's gradient by its inverse."""

import math

import pytest
import torch
from torch import nn

from backdrift import objective as obj
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.objective.base import Samples
from backdrift.objective.uncertainty import GAIN, LogLoss
from backdrift.process import Gaussian
from backdrift.schedule import Cosine, Flow
from backdrift.target import V


@pytest.mark.parametrize("schedule", [Flow(), Cosine()], ids=lambda s: type(s).__name__)
def test_it_becomes_the_log_of_the_expected_loss(schedule):
    head = LogLoss(48, 0.5)
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
    expected = lambda t: 0.02 + t**3  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    for step in range(500):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / 500)
        t = obj.Angle(0.5).quantile(torch.rand(256, generator=generator, dtype=torch.float64), schedule)
        loss = (expected(t) * -torch.rand(256, generator=generator, dtype=torch.float64).log()).float()
        u = head(schedule, t)
        optimiser.zero_grad()
        (loss / u.exp() + u).mean().backward()
        optimiser.step()
    t = obj.Angle(0.5).quantile(torch.linspace(0.05, 0.95, 40, dtype=torch.float64), schedule)
    gaps = head(schedule, t).detach() - expected(t).log()
    assert float(gaps.abs().max()) < 0.35 and float(gaps.square().mean().sqrt()) < 0.12


def test_every_level_is_divided_by_its_expectation():
    torch.manual_seed(0)
    net, objective = nn.Conv2d(1, 1, 1), obj.Denoising(obj.P2(), obj.Uncertainty(9))
    module = Network(net, Gaussian(Flow()), V(), (1, 2, 2), 0.4)
    net.forward = lambda x, noise, cond: nn.functional.conv2d(x, net.weight, net.bias)
    head = objective.head(module)
    with torch.no_grad():
        head.corners.copy_(torch.linspace(-0.2, 0.1, 9))
    t = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    ones, x0 = torch.ones_like(t), torch.linspace(-1, 1, 12).view(3, 1, 2, 2)
    given = Samples(x0, t, {}, Noise.of(0, 3), ones, ones, t, t)
    losses, plain = objective.losses(module, head, given), obj.Denoising(obj.P2()).losses(module, nn.Identity(), given)
    u = head(Flow(), t).detach()
    torch.testing.assert_close(losses.total.detach(), plain.total.detach() / u.exp() + u)
    assert torch.equal(losses.shown, plain.total.detach()) and float(u.std()) > 0.1
    found = torch.autograd.grad(losses.total.sum(), [net.weight, head.corners], retain_graph=True)
    expected = torch.autograd.grad((plain.total / u.exp()).sum(), net.weight)
    torch.testing.assert_close(found[0], expected[0])
    # u rises where the loss is above exp(u)
    torch.testing.assert_close(found[1].sum(), GAIN * (1 - losses.shown / u.exp()).sum())


def test_it_is_a_polygon_in_the_log_of_the_noise():
    head = LogLoss(15, 0.5)  # corners at whole numbers from -7 to 7
    with torch.no_grad():
        head.corners.copy_(torch.arange(15.0) ** 2 / GAIN)
    for level in (-6.25, 0.0, 0.5, 6.9):
        t = Flow().time(torch.tensor([-2 * (level + math.log(0.5))], dtype=torch.float64))
        left = math.floor(level)
        corners = [(left + 7) ** 2, (left + 8) ** 2]
        expected = corners[0] + (level - left) * (corners[1] - corners[0])
        assert float(head(Flow(), t).detach()) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    ends = head(Flow(), torch.tensor([1e-9, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 196.0]))


def test_nodes_are_at_least_two():
    with pytest.raises(UserError, match="at least 2"):
        obj.Uncertainty(1)
