"""Flow maps in float64 at the exact map of Gaussian data, which is a closed form: identities, losses and jumps."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.fewstep import AlignYourFlow, AlphaFlow, MeanFlow, PathMap, Shortcut, Trajectory
from backdrift.fewstep.flowdistill import TeacherFlow
from backdrift.fewstep.flowmap import FlowMap, angle
from backdrift.fewstep.meanflow import alpha_target, eulerian, two_halves
from backdrift.fewstep.tangent import Differences, Exact, SemiDiscrete
from backdrift.nets import MLP, DiT, MPUNet, UNet
from backdrift.noise import Noise
from backdrift.objective.base import Samples
from backdrift.process import Gaussian

MEAN = torch.tensor([0.4, -0.3, 0.1]).double()  # in units of sigma_data
VAR = torch.tensor([0.5, 1.0, 1.7]).double()
SIGMA_DATA = 0.6
SCHEDULES = [bd.schedule.VP(), bd.schedule.Flow(), bd.schedule.EDM()]
TAU = torch.tensor([0.05, 0.3, 0.6, 0.8, 0.97, 1.0]).double()


def variance(w):
    return w.cos()[:, None] ** 2 * VAR + w.sin()[:, None] ** 2


def flow(u, w, v):
    """The probability flow of N(MEAN, VAR) from the noise angle w to v."""
    gain = (variance(v) / variance(w)).sqrt()
    return v.cos()[:, None] * MEAN + gain * (u - w.cos()[:, None] * MEAN)


class Net(torch.nn.Module):
    """F of the exact flow map; without "toward", or at it, of the posterior mean. Times a factor, plus a bend."""

    told = ("toward",)

    def __init__(self, bend=0.0):
        super().__init__()
        self.bend, self.factor = bend, torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, u, w, cond=None):
        w = w.double()
        v = (cond or {}).get("toward", w).double()
        cos, sin = w.cos()[:, None], w.sin()[:, None]
        mean = MEAN + cos * VAR / variance(w) * (u - cos * MEAN)
        still = (mean - cos * u) / sin.clamp_min(1e-12)
        gap = (w - v)[:, None]
        same = gap == 0
        far = (flow(u, w, v) - gap.cos() * u) / torch.where(same, 1.0, gap.sin())
        return self.factor * (torch.where(same, still, far) + self.bend * torch.tanh(u))


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(schedule=SCHEDULES[0], bend=0.0, told=("toward",)):
    return bd.Network(Net(bend), Gaussian(schedule), bd.target.EDM_F(SIGMA_DATA), (3,), SIGMA_DATA, told=told)


def given(n, t):
    x0 = SIGMA_DATA * (MEAN + VAR.sqrt() * random(n, 3, seed=5))
    ones = torch.ones(n, dtype=torch.float64)
    return Samples(x0, t, {}, Noise.of(0, n), ones, ones, t, ones)


def exact(z, tau, rho):
    """The flow in the straight path's coordinates, from tau to rho."""
    h, h_end = (torch.hypot(x, 1 - x)[:, None] for x in (tau, rho))
    return h_end * flow(z / h, angle(tau), angle(rho))


MAP = FlowMap(Net(), {})


def test_boundary_holds_for_any_net_and_jumps_are_the_flow():
    z = random(6, 3)
    assert torch.equal(FlowMap(Net(bend=0.7), {}).jump(z, TAU, TAU), z)
    for rho in (0.0, 0.02, 0.04):
        end = torch.full_like(TAU, rho)
        torch.testing.assert_close(MAP.jump(z, TAU, end), exact(z, TAU, end), rtol=0, atol=1e-9)
    assert (FlowMap(Net(bend=0.1), {}).jump(z, TAU, 0 * TAU) - exact(z, TAU, 0 * TAU)).abs().max() > 1e-3


def test_velocity_is_the_rate_of_the_flow():
    z, h = random(6, 3), 1e-6
    rate = (z - exact(z, TAU, TAU - h)) / h
    torch.testing.assert_close(MAP.speed(z, TAU), rate, rtol=0, atol=1e-4)


def missed(flow_map, z, velocity, gap_sign=1.0):
    rho = TAU * 0.4
    rise = flow_map.rise(Exact(), z, TAU, rho, velocity)
    return eulerian(flow_map.speed(z, TAU, rho), rise, gap_sign * (TAU - rho), velocity).abs().max()


def test_mean_flow_identity_and_align_your_flow_tangent_vanish_at_the_exact_map():
    z = random(6, 3)
    velocity = MAP.speed(z, TAU)
    assert missed(MAP, z, velocity) < 1e-8
    assert missed(MAP, z, velocity, gap_sign=-1.0) > 0.1
    assert missed(MAP, z, -velocity) > 0.1
    assert missed(FlowMap(Net(bend=0.1), {}), z, velocity) > 1e-2


def test_shortcut_alpha_flow_and_semigroup_identities_hold_at_the_exact_map():
    z = random(6, 3)
    half = TAU / 4
    whole = MAP.speed(z, TAU, TAU - 2 * half)
    never = torch.zeros(6, dtype=torch.bool)
    assert (two_halves(MAP, z, TAU, half, never) - whole).abs().max() < 1e-8
    assert (two_halves(MAP, z, TAU, -half, never) - whole).abs().max() > 1e-2
    # the second half starts where the first one ends: three points of one path
    mid, end = 0.7 * TAU, 0.2 * TAU
    twice = MAP.jump(MAP.jump(z, TAU, mid), mid, end)
    assert (twice - MAP.jump(z, TAU, end)).abs().max() < 1e-8
    # were v the average velocity over the first part, alpha-flow's target is the average over all
    alpha = torch.full((6,), 0.3).double()
    v = MAP.speed(z, TAU, TAU - alpha * (TAU - end))
    found = alpha_target(MAP, z, TAU, end, v, alpha)
    assert (found - MAP.speed(z, TAU, end)).abs().max() < 1e-8
    assert (alpha_target(MAP, z, TAU, end, -v, alpha) - MAP.speed(z, TAU, end)).abs().max() > 0.1


def test_alpha_flow_tends_to_the_mean_flow_identity():
    z, rho, v, flow_map = random(6, 3), TAU * 0.3, random(6, 3, seed=1), FlowMap(Net(bend=0.3), {})
    speed = flow_map.speed(z, TAU, rho)
    wanted = eulerian(speed, flow_map.rise(Exact(), z, TAU, rho, v), TAU - rho, v)
    alpha = torch.full((6,), 1e-6).double()
    found = (speed - alpha_target(flow_map, z, TAU, rho, v, alpha)) / 1e-6
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", [AlignYourFlow(warmup=0.0, most=1.0), Trajectory(steps=60), PathMap(steps=40)])
def test_distillation_has_no_gradient_at_the_exact_map(schedule, objective):
    t = torch.linspace(0.02, 0.98, 64).double()

    def gradient(student, sign=1.0):
        head = objective.head(network(schedule))
        head.network.net.factor.fill_(sign)
        objective.losses(student, head, given(64, t)).total.mean().backward()
        return abs(float(student.net.factor.grad))

    off = gradient(network(schedule, bend=0.3))
    assert gradient(network(schedule)) < 2e-2 * off if isinstance(objective, PathMap) else 5e-3 * off
    assert gradient(network(schedule), sign=-1.0) > 0.1 * off


@pytest.mark.parametrize("objective", [MeanFlow(power=0.0), MeanFlow(improved=False, power=0.0), Shortcut()])
def test_training_from_data_has_no_gradient_at_the_exact_map_on_average(objective):
    """Over many samples the gradient is within its own error of zero; at another map it is not."""

    def score(bend):
        n, parts = 40_000, 20
        student = network(SCHEDULES[1], bend=bend)
        losses = objective.losses(student, None, given(n, torch.linspace(0.02, 0.98, n).double())).total
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
        grads = [
            torch.autograd.grad(losses[rows].mean(), student.net.factor, retain_graph=True)[0]
            for rows in order.chunk(parts)
        ]
        grads = torch.stack(grads)
        return float(grads.mean().abs() / (grads.std() / math.sqrt(parts)))

    assert score(0.0) < 4.5
    assert score(0.5) > 9


def test_alpha_falls_from_flow_matching_to_mean_flow():
    alpha = AlphaFlow(least=0.02).alpha(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(alpha, torch.tensor([1 / (1 + math.exp(-6)), 0.5, 0.02]))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_jumps_at_the_exact_map_are_the_flow_in_any_number(schedule, steps):
    student = network(schedule)
    true = bd.exact.Gaussian(SIGMA_DATA * MEAN, SIGMA_DATA**2 * VAR).denoiser(Gaussian(schedule))
    x1 = true.draw(16, 1.0)
    x = bd.sample(student, x1, steps=steps)  # the default sampler of a flow map
    torch.testing.assert_close(x, true.flow(x1, 1.0, 0.0), rtol=0, atol=2e-5)  # the angle is float32


@pytest.mark.parametrize("gamma", [0.3, 0.8, 1.0])
def test_gamma_sampling_keeps_the_law_at_every_time(gamma):
    n, schedule, times = 20_000, bd.schedule.VP(), [1.0, 0.5, 0.2, 0.0]
    true = bd.exact.Gaussian(SIGMA_DATA * MEAN, SIGMA_DATA**2 * VAR).denoiser(Gaussian(schedule))
    seen = []
    plan = bd.solvers.Jump(gamma).plan(schedule, times)
    out = plan.run(network(schedule), true.draw(n, 1.0), None, Noise.of(3, n), lambda step: seen.append(step.state))
    for t, x in zip(times[1:], [*seen[1:], out], strict=True):
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(t))
        mean, var = alpha * SIGMA_DATA * MEAN, alpha**2 * SIGMA_DATA**2 * VAR + sigma**2
        assert ((x.mean(0) - mean) / (var / n).sqrt()).abs().max() < 4.5
        assert ((x.var(0) / var - 1) / math.sqrt(2 / n)).abs().max() < 4.5


def test_plan_keeps_what_it_asks_for(tmp_path):
    plan = bd.solvers.Jump(0.0).plan(bd.schedule.VP(), [1.0, 0.4, 0.0])
    assert plan.toward.tolist() == [0.4, 0.0]
    plan.save(tmp_path / "plan.json")
    assert bd.Plan.load(tmp_path / "plan.json").toward.tolist() == [0.4, 0.0]
    partial = bd.solvers.Jump(0.6).plan(bd.schedule.Flow(), [1.0, 0.5, 0.0]).toward
    # sigma / alpha of the time that is asked for is 0.8 of that at 0.5, which is 1
    assert float(partial[0] / (1 - partial[0])) == pytest.approx(0.8)
    assert bd.solvers.DDIM().plan(bd.schedule.VP(), [1.0, 0.4, 0.0]).toward is None


NETS = [
    lambda: UNet(1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16, classes=3),
    lambda: MPUNet(1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_width=16, classes=3),
    lambda: DiT(1, width=32, depth=2, head_width=16, classes=3),
    lambda: MLP(12, width=32, classes=3),
]


@pytest.mark.parametrize("make", NETS)
def test_a_trained_network_is_a_flow_map_at_once_and_learns_to_heed(make):
    torch.manual_seed(0)
    net = make()
    for p in net.parameters():  # the last layers start at zero
        p.data += 0.05 * torch.randn(p.shape)
    x = torch.randn(4, 12) if isinstance(net, MLP) else torch.randn(4, 1, 8, 8)
    w, v = torch.tensor([0.2, 0.7, 1.2, 1.5]), torch.tensor([0.1, 0.0, 0.3, 1.5])
    cond = {"label": torch.tensor([0, 1, 2, 3]), "toward": v}
    before = net(x, w, cond)
    net.conditioning.further.listen(("toward",))
    net.eval()
    assert torch.equal(net(x, w, cond), net.eval()(x, w, cond))
    torch.testing.assert_close(net(x, w, cond), before, rtol=0, atol=1e-6)
    out = net.conditioning.further.layers["toward"][1]
    out.weight.data += 0.3 * torch.randn(out.weight.shape)
    assert (net(x, w, cond) - before).abs().amax() > 1e-3

    # the three ways to a derivative along a path through a network that heeds rho
    flow_map, tau, along = FlowMap(net, cond), torch.tensor([0.1, 0.4, 0.7, 0.9]), torch.randn_like(x)
    exact, semi, near = (
        flow_map.rise(tangent, x, tau, 0.5 * tau, along) for tangent in (Exact(), SemiDiscrete(), Differences())
    )
    assert (semi - exact).norm() < 0.01 * exact.norm()
    assert (near - exact).norm() < 0.01 * exact.norm()


def test_a_net_that_does_not_listen_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="does not say that it heeds toward"):
        bd.Network(torch.nn.Identity(), Gaussian(bd.schedule.VP()), bd.target.EDM_F(0.5), (3,), told=("toward",))
    other = bd.Network(Net(), Gaussian(bd.schedule.VP()), bd.target.X0(), (3,), told=("toward",))
    for objective in (MeanFlow(), AlphaFlow(), Shortcut(), AlignYourFlow(), Trajectory(), PathMap()):
        with pytest.raises(UserError, match="needs a network with the target edm_f"):
            objective.head(other)


def test_teacher_flow_is_the_velocity_and_heun_follows_it():
    objective = AlignYourFlow()
    teacher = TeacherFlow(objective.head(network()), 1.0, {})
    z = random(6, 3)
    torch.testing.assert_close(teacher.velocity(z, TAU), MAP.speed(z, TAU))
    moved = exact(z, TAU, 0.98 * TAU)
    assert (teacher.step(z, TAU, 0.98 * TAU) - moved).abs().max() < 2e-3 * (moved - z).abs().max()
