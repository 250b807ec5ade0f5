"""Consistency losses at the exact end-of-path map of Gaussian data, in float64."""

import math

import pytest
import torch

import backdrift as bd
from backdrift.fewstep.consistency import ConsistencyDistillation, EasyConsistency, heun, noise_level, time_at
from backdrift.fewstep.continuous import ContinuousConsistency, tangent
from backdrift.fewstep.tangent import Differences, Exact
from backdrift.noise import Noise
from backdrift.objective.base import Samples
from backdrift.process import Gaussian
from backdrift.sample.default import default_grid

MEAN = torch.tensor([0.4, -0.3, 0.1]).double()  # in units of sigma_data
VAR = torch.tensor([0.5, 1.0, 1.7]).double()
SIGMA_DATA = 0.6
SCHEDULES = [bd.schedule.VP(), bd.schedule.Flow(), bd.schedule.EDM()]


def end_of_path(u, w):
    """y where the flow through u at the angle w ends, for y ~ N(MEAN, VAR)."""
    cos, sin = w.cos()[:, None], w.sin()[:, None]
    return MEAN + VAR.sqrt() * (u - cos * MEAN) / (cos**2 * VAR + sin**2).sqrt()


def posterior_mean(u, w):
    cos, sin = w.cos()[:, None], w.sin()[:, None]
    return MEAN + cos * VAR / (cos**2 * VAR + sin**2) * (u - cos * MEAN)


class Net(torch.nn.Module):
    """F of a map y(u, w), times a factor that a test may turn away from 1."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.factor = answer, torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, u, w, cond=None):
        w = w.double()
        F = (self.answer(u, w) - w.cos()[:, None] * u) / w.sin()[:, None]
        return self.factor * F


def network(answer, schedule):
    target = bd.target.EDM_F(SIGMA_DATA)
    return bd.Network(Net(answer), Gaussian(schedule), target, (3,), SIGMA_DATA)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


W = torch.tensor([0.05, 0.3, 0.8, 1.2, 1.5, 1.565]).double()


def exact_tangent(u, w, speed, warm=1.0):
    net = Net(end_of_path)
    cos, sin = w.cos()[:, None], w.sin()[:, None]
    rise = Exact().along(net, u, w, cos * sin * speed, w.cos() * w.sin())
    return tangent(net(u, w).detach(), rise, u, speed, w, torch.full_like(w, warm))


def test_tangent_is_the_derivative_along_the_path_for_any_network():
    """cos w d/dw of cos w u + sin w F by finite differences along a straight direction."""
    net, u, speed, h = Net(lambda u, w: torch.tanh(u) * w[:, None] ** 2), random(6, 3), random(6, 3, seed=1), 1e-5

    def f(u, w):
        return (w.cos()[:, None] * u + w.sin()[:, None] * net(u, w)).detach()

    slope = (f(u + h * speed, W + h) - f(u - h * speed, W - h)) / (2 * h)
    cos, sin = W.cos()[:, None], W.sin()[:, None]
    rise = Exact().along(net, u, W, cos * sin * speed, W.cos() * W.sin())
    found = tangent(net(u, W).detach(), rise, u, speed, W, torch.ones(6).double())
    torch.testing.assert_close(found, cos * slope, rtol=1e-6, atol=1e-8)


def test_tangent_vanishes_along_the_exact_flow_at_the_exact_map():
    u = random(6, 3)
    flow = -Net(posterior_mean)(u, W).detach()
    assert exact_tangent(u, W, flow).abs().max() < 1e-8
    # a planted sign error, in the flow or in the second part, does not
    assert exact_tangent(u, W, -flow).abs().max() > 0.1
    assert exact_tangent(u, W, flow, warm=-1.0).abs().max() > 0.1


def test_tangent_along_the_data_vanishes_on_average():
    n, w = 200_000, 0.8
    y = MEAN + VAR.sqrt() * random(n, 3)
    eps = random(n, 3, seed=1)
    angle = torch.full((n,), w).double()
    u, speed = math.cos(w) * y + math.sin(w) * eps, math.cos(w) * eps - math.sin(w) * y
    g = exact_tangent(u, angle, speed)
    # against any function of u, here polynomials: the gradient of the loss
    for probe in (torch.ones_like(u), u, u**2):
        moment = (g * probe).mean(0)
        assert (moment / ((g * probe).std(0) / math.sqrt(n))).abs().max() < 4.5


def test_finite_differences_are_near():
    net, u, speed = (
        Net(lambda u, w: torch.tanh(u) * w[:, None] ** 2).float(),
        random(6, 3).float(),
        random(6, 3).float(),
    )
    w = W.float()[:5]
    exact = Exact().along(net, u[:5], w, speed[:5], torch.ones(5))
    near = Differences(1e-3).along(net, u[:5], w, speed[:5], torch.ones(5))
    assert ((near - exact).norm() / exact.norm()) < 0.01


def given(schedule, n, times, place=None):
    x0 = SIGMA_DATA * (MEAN + VAR.sqrt() * random(n, 3, seed=5))
    ones = torch.ones(n, dtype=torch.float64)
    place = torch.linspace(0.001, 0.999, n).double() if place is None else place
    return Samples(x0, times, {}, Noise.of(0, n), ones, ones, place, torch.ones(n).double())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_continuous_distillation_has_no_gradient_at_the_exact_map(schedule):
    times = torch.linspace(0.05, 0.95, 40).double()

    def gradient(teacher, student):
        objective, net = ContinuousConsistency(warmup=0.0), network(student, schedule)
        head = objective.head(network(teacher, schedule))
        objective.losses(net, head, given(schedule, 40, times)).total.sum().backward()
        return abs(float(net.net.factor.grad))

    at_the_map = gradient(posterior_mean, end_of_path)
    off_the_map = gradient(posterior_mean, posterior_mean)
    assert at_the_map < 1e-3 * off_the_map  # the network is told its angle in float32
    assert gradient(lambda u, w: -posterior_mean(u, w), end_of_path) > 0.1 * off_the_map


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_distillation_loss_is_of_second_order_in_the_steps(schedule):
    def loss(steps, student=end_of_path):
        objective = ConsistencyDistillation(steps)
        head = objective.head(network(posterior_mean, schedule))
        n, net = steps, network(student, schedule)
        place = (torch.arange(n).double() + 0.5) / n
        losses = objective.losses(net, head, given(schedule, n, torch.zeros(n), place)).total
        # times the gap, the distance itself: the error of one step of the teacher
        grid = default_grid(net).times(schedule, steps)
        gap = noise_level(net, grid[:-1]) - noise_level(net, grid[1:])
        return float((losses.detach() * gap)[: steps // 2].max())

    errors = [loss(steps) for steps in (20, 40, 80)]
    assert errors[0] / errors[1] > 5 and errors[1] / errors[2] > 5  # a step of order two errs by its cube
    assert loss(80, posterior_mean) > 30 * errors[2]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heun_follows_the_flow(schedule):
    teacher = network(posterior_mean, schedule)
    exact = bd.exact.Gaussian(SIGMA_DATA * MEAN, SIGMA_DATA**2 * VAR).denoiser(Gaussian(schedule))
    t, s = torch.full((4,), 0.6).double(), torch.full((4,), 0.58).double()
    x = exact.draw(4, 0.6)
    moved = exact.flow(x, 0.6, 0.58)
    error = (heun(teacher, schedule, x, t, s, {}) - moved).abs().max()
    assert error < 3e-3 * (moved - x).abs().max()


def test_easy_pairs_come_nearer_with_the_stages():
    objective = EasyConsistency(base=2.0, stages=8)
    level, progress = torch.tensor([0.1, 1.0, 10.0]).double(), torch.tensor([0.0, 0.5, 0.99]).double()
    for i, stage in enumerate((0, 4, 7)):
        n = 1 + 8 / (1 + torch.exp(level[i]))
        expected = max(0.0, float(level[i] * (1 - n / 2 ** (stage + 1))))
        assert float(objective.earlier(level, progress)[i]) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_easy_loss_is_zero_for_what_does_not_change_and_the_data_at_the_clean_end(schedule):
    fixed = torch.tensor([0.3, 0.2, -0.1]).double()
    n = 8
    level = torch.tensor([0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0]).double()
    net = network(lambda u, w: fixed.expand(u.shape), schedule)
    times = time_at(net, schedule, level)
    samples = given(schedule, n, times)
    found = EasyConsistency(base=2.0, stages=1).losses(net, None, samples).total
    r = EasyConsistency(base=2.0, stages=1).earlier(level, torch.ones(n).double())
    clean = r == 0
    assert clean.any() and not clean.all()
    torch.testing.assert_close(found[~clean].double(), torch.zeros(int((~clean).sum())).double(), atol=1e-6, rtol=0)
    # r = 0: the distance to the datum over t, in the papers' units
    distance = (samples.x0 - SIGMA_DATA * fixed).norm(dim=1) * 0.5 / SIGMA_DATA
    torch.testing.assert_close(found[clean].double(), (distance / level / 3**0.5)[clean], rtol=1e-4, atol=1e-6)


def test_noise_levels_are_those_of_the_papers():
    net = network(posterior_mean, bd.schedule.EDM())
    t = bd.schedule.EDM().time(torch.tensor(-2 * math.log(0.821 * SIGMA_DATA / 0.5)).double())
    assert float(noise_level(net, t[None])) == pytest.approx(0.821)
    assert float(time_at(net, net.process.schedule, torch.tensor([0.821]).double())) == pytest.approx(float(t))
