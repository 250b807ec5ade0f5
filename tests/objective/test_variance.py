"""Learned reverse variances against KL divergences and optimal fractions in closed form."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from backdrift import objective as obj
from backdrift.config import from_config, to_config
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.objective.base import Samples
from backdrift.posterior import TensorPosterior
from backdrift.process import Gaussian
from backdrift.schedule import VE, VP, Cosine, Flow
from backdrift.target import X0


class Bridge:
    """DDPM's reverse step from t to s, written with conditional Gaussians: q(x_s | x_t, x_0) by Bayes' rule."""

    def __init__(self, schedule, t, s):
        (self.a_t, s_t), (self.a_s, s_s) = ([float(c) for c in schedule.alpha_sigma(v)] for v in (t, s))
        self.step = s_t**2 - (self.a_t / self.a_s * s_s) ** 2
        precision = 1 / s_s**2 + (self.a_t / self.a_s) ** 2 / self.step
        self.var, self.s_s = 1 / precision, s_s

    def mean(self, xt, x0):
        return self.var * (self.a_s * x0 / self.s_s**2 + self.a_t / self.a_s * xt / self.step)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Flow(), VE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("time", [0.004, 0.2, 0.85])
def test_the_cost_and_its_gradient_are_those_of_the_kl(schedule, time):
    hybrid, density = obj.Hybrid(0.01, steps=20), torch.tensor([0.7, 0.7], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0, xt, mean, fraction = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    mean, fraction = mean.requires_grad_(), fraction.requires_grad_()
    t = torch.full((2,), time, dtype=torch.float64)
    cost = hybrid.cost(TensorPosterior(mean, fraction), x0, t, schedule, density)
    (grad,) = torch.autograd.grad(cost.sum(), fraction)

    bridge = Bridge(schedule, time, max(time - 0.05, time / 2))
    free = fraction.detach().requires_grad_()
    std = (free / 2 * math.log(bridge.step) + (1 - free) / 2 * math.log(bridge.var)).exp()
    true = Normal(bridge.mean(xt, x0), math.sqrt(bridge.var))
    kl = kl_divergence(true, Normal(bridge.mean(xt, mean.detach()), std)).mean(1)
    expected = 0.01 * 20 * kl / 0.7
    torch.testing.assert_close(cost, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), free)[0], rtol=1e-9, atol=1e-12)


class Constant(nn.Module):
    """An affine mean and one fraction."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, 0.1], dtype=torch.float64))
        self.fraction = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def forward(self, x, noise, cond=None):
        return torch.cat([self.mean[0] * x + self.mean[1], (2 * self.fraction - 1).expand_as(x)], 1)


def samples(t, noise, x0):
    ones = torch.ones_like(t)
    return Samples(x0, t, {}, noise, ones, ones, t, t)


def test_the_mean_sees_the_plain_loss_alone():
    net, process, n = Constant(), Gaussian(Cosine()), 64
    network = Network(net, process, X0(), (1, 2, 2), learned_variance=True)
    x0 = torch.linspace(-1, 1, 4 * n, dtype=torch.float64).view(n, 1, 2, 2)
    given = samples(torch.linspace(0.1, 0.9, n, dtype=torch.float64), Noise.of(0, n), x0)
    plain, hybrid = obj.Denoising(), obj.Denoising(variance=obj.Hybrid())
    gradients = []
    for objective in (plain, hybrid):
        net.zero_grad()
        losses = objective.losses(network, nn.Identity(), given)
        losses.total.mean().backward()
        gradients.append(net.mean.grad.clone())
    assert torch.equal(*gradients)
    assert float(net.fraction.grad) != 0
    torch.testing.assert_close(losses.shown, plain.losses(network, nn.Identity(), given).shown)


class Learner(nn.Module):
    """The exact mean of Gaussian data, and a fraction that a small network makes of the noise."""

    def __init__(self, variance):
        super().__init__()
        self.variance = variance
        self.net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, x, noise, cond=None):
        # x is x_t / (alpha^2 + sigma^2)^(1/2), and tan(noise) = sigma / alpha
        sigma, alpha = noise.sin()[:, None], noise.cos()[:, None]
        mean = alpha * self.variance / (alpha**2 * self.variance + sigma**2) * x
        return torch.cat([mean, self.net(noise[:, None]).expand_as(x)], 1)


def test_a_small_network_learns_the_optimal_fraction_of_gaussian_data():
    variance, steps, n, schedule = 0.3, 10, 512, Flow()
    torch.manual_seed(0)
    net = Learner(variance)
    network = Network(net, Gaussian(schedule), X0(), (8,), sigma_data=1.0, learned_variance=True)
    objective = obj.Denoising(variance=obj.Hybrid(1.0, steps))
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-2)
    for step in range(250):
        optimiser.param_groups[0]["lr"] = 2e-2 * (1 - step / 250)
        noise = Noise(0, torch.arange(n) + n * step)
        x0 = math.sqrt(variance) * noise.at("data").normal(torch.zeros(n, 8))
        t = 0.2 + 0.8 * obj.Uniform().times(noise.at("time"), schedule)
        optimiser.zero_grad()
        objective.losses(network, nn.Identity(), samples(t, noise, x0)).total.mean().backward()
        optimiser.step()
    t = torch.linspace(0.25, 0.95, 9, dtype=torch.float64)
    (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(t - 1 / steps)
    bridge_step = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    # the variance of x_s given x_t on Gaussian data, by Bayes' rule from var(x_s) = alpha_s^2 v + sigma_s^2
    exact = 1 / (1 / (alpha_s**2 * variance + sigma_s**2) + (alpha / alpha_s) ** 2 / bridge_step)
    small = sigma_s**2 * bridge_step / sigma**2
    best = (exact / small).log() / (bridge_step / small).log()
    with torch.no_grad():
        found = network(torch.zeros(9, 8), t).fraction[:, 0]
    assert float(best.max() - best.min()) > 0.2
    torch.testing.assert_close(found.double(), best, atol=0.04, rtol=0)


def test_the_second_half_of_the_channels_says_where_between_the_variances():
    net = nn.Identity()
    net.forward = lambda x, noise, cond: torch.cat([x, torch.tensor([-1.0, 0.0, 1.0, 1.5]).expand_as(x)], 1)
    belief = Network(net, Gaussian(Cosine()), X0(), (2, 4), learned_variance=True)(torch.ones(3, 2, 4), 0.5)
    assert torch.equal(belief.fraction, torch.tensor([0.0, 0.5, 1.0, 1.25]).expand(3, 2, 4))
    alpha, sigma = (float(c) for c in Cosine().alpha_sigma(0.5))
    torch.testing.assert_close(belief.mean, torch.ones(3, 2, 4) / math.hypot(sigma, alpha * 0.5))


def test_networks_of_the_wrong_width_and_bad_choices_are_refused():
    network = Network(nn.Identity(), Gaussian(Cosine()), X0(), (3, 4, 4), learned_variance=True)
    network.net.forward = lambda x, noise, cond: x
    with pytest.raises(UserError, match="returns 6 channels, not 3"):
        network(torch.zeros(2, 3, 4, 4), 0.5)
    for bad, words in (({"share": 0.0}, "positive share"), ({"steps": 0}, "at least 1 step")):
        with pytest.raises(UserError, match=words):
            obj.Hybrid(**bad)
    whole = obj.Denoising(obj.P2(), obj.Uncertainty(5), obj.Hybrid(0.1, 7), 0.5)
    assert from_config(to_config(whole)) == whole
