import math

import pytest
import torch
from torch import nn

from backdrift.denoiser import Network, TokenNetwork
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.process import Gaussian, Masking, UniformTokens
from backdrift.schedule import EDM, VE, VP, Cosine, Flow, Trig
from backdrift.target import EDM_F, EPS, SCORE, VELOCITY, X0, V
from test_schedule import SCHEDULES

TARGETS = [X0(), EPS(), V(), VELOCITY(), SCORE(), EDM_F(0.7)]


class Net(nn.Module):
    """Records what it was given and returns what `answer` makes of it."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, noise, cond=None):
        self.x, self.noise, self.cond = x, noise, cond
        return self.answer(x, noise)


def state(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("target", TARGETS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_perfect_prediction_gives_x0_back(schedule, target):
    if target.needs_alpha and schedule.alpha_sigma(1.0)[0] == 0:
        with pytest.raises(UserError):
            Network(Net(None), Gaussian(schedule), target, (2, 3))
        return
    x0, eps = state(4, 2, 3), state(4, 2, 3, seed=1)
    for t in (0.0, 0.37, torch.tensor([0.0, 0.2, 0.9, 1.0]).double()):
        alpha, sigma = (v.expand(4).view(4, 1, 1) for v in schedule.alpha_sigma(t))
        a, b = (v.expand(4).view(4, 1, 1) for v in target.row(schedule, t))
        net = Net(lambda x, noise, p=a * x0 + b * eps: p)
        xt = alpha * x0 + sigma * eps
        mean = Network(net, Gaussian(schedule), target, (2, 3))(xt, t).mean
        torch.testing.assert_close(mean, x0, rtol=1e-9, atol=1e-9)


def test_the_network_sees_unit_variance_and_the_angle():
    for schedule in (VP(), VE(), EDM(), Cosine(), Flow()):
        net, sigma_data = Net(lambda x, noise: x), 0.3
        network = Network(net, Gaussian(schedule), X0(), (2000,), sigma_data)
        t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
        alpha, sigma = schedule.alpha_sigma(t)
        network(alpha[:, None] * sigma_data * state(5, 2000) + sigma[:, None] * state(5, 2000, seed=1), t)
        assert net.x.std(1) == pytest.approx(torch.ones(5), abs=5 / math.sqrt(4000))
        expected = [math.atan2(s, a * sigma_data) for a, s in zip(alpha.tolist(), sigma.tolist(), strict=True)]
        assert net.noise.dtype == torch.float32 and net.noise.shape == (5,)
        assert net.noise.tolist() == pytest.approx(expected, rel=1e-6)
        assert bool((net.noise >= 0).all() & (net.noise <= torch.tensor(math.pi / 2)).all())


def test_the_conditions_reach_the_network():
    net, cond = Net(lambda x, noise: x), {"label": torch.tensor([1, 2])}
    network = Network(net, Gaussian(Flow()), X0(), (3,))
    network(state(2, 3), 0.5, cond)
    assert net.cond is cond
    network(state(2, 3), 0.5)
    assert net.cond is None


@pytest.mark.parametrize("target", [EPS(), SCORE(), X0(), V(), VELOCITY(), EDM_F()], ids=repr)
def test_at_sigma_0_the_network_is_never_used(target):
    network = Network(Net(lambda x, noise: torch.full_like(x, torch.nan)), Gaussian(VP()), target, (3,))
    xt = state(4, 3)
    assert torch.equal(network(xt, 0.0).mean, xt)
    mean = network(xt, torch.tensor([0.0, 0.5, 0.0, 1.0])).mean
    assert torch.equal(mean[[0, 2]], xt[[0, 2]]) and bool(mean[[1, 3]].isnan().all())


def test_a_schedule_that_never_reaches_sigma_0_always_uses_the_network():
    for schedule in (VE(), EDM()):
        network = Network(Net(lambda x, noise: torch.full_like(x, 3.0)), Gaussian(schedule), X0(), (3,))
        assert torch.equal(network(state(2, 3), 0.0).mean, torch.full((2, 3), 3.0).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_per_sample_agree_with_one_time_each(dtype):
    net = Net(lambda x, noise: (x * noise.to(x.dtype)[:, None]).sin())
    network = Network(net, Gaussian(Trig()), V(), (3,), 0.4)
    xt, t = state(4, 3).to(dtype), torch.tensor([0.0, 0.3, 0.6, 1.0]).double()
    together = network(xt, t).mean
    assert together.dtype == dtype
    for i in range(4):
        torch.testing.assert_close(network(xt[i : i + 1], float(t[i])).mean, together[i : i + 1], rtol=0, atol=1e-6)
    torch.testing.assert_close(network(xt, 0.3).mean, network(xt, torch.full((4,), 0.3).double()).mean)


def test_a_network_serves_another_schedule_through_the_noise_to_signal_ratio():
    """X0, EPS and EDM_F: the same state up to its scale gives the same belief on any schedule."""
    net = Net(lambda x, noise: (x + noise.double()[:, None]).cos())
    for target in (X0(), EPS(), EDM_F(0.4)):
        a, b = (Network(net, Gaussian(schedule), target, (3,), 0.4) for schedule in (VP(), VE()))
        t = 0.4
        s = float(VE().time(VP().logsnr(t)))
        alpha = VP().alpha_sigma(t)[0]
        xt = state(2, 3)
        torch.testing.assert_close(a(xt, t).mean, b(xt / alpha, s).mean, rtol=1e-6, atol=1e-6)


def test_gradients_reach_the_network_and_stay_finite_where_it_is_not_used():
    linear = nn.Linear(3, 3).double()
    network = Network(Net(lambda x, noise: linear(x)), Gaussian(VP()), V(), (3,))
    network(state(3, 3), torch.tensor([0.0, 0.4, 1.0])).mean.square().sum().backward()
    assert bool(linear.weight.grad.isfinite().all()) and linear.weight.grad.abs().sum() > 0
    assert set(dict(network.named_parameters())) == set()  # held in the closure here; a real net is a submodule
    assert Network(linear, Gaussian(VP()), V(), (3,)).state_dict().keys() == {"net.weight", "net.bias"}


def test_a_scale_that_is_no_deviation_is_refused():
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="standard deviation"):
            Network(Net(None), Gaussian(VP()), V(), (3,), bad)


# --- tokens


def logits(count, seed=0):
    return torch.randn(count, 5, 3, generator=torch.Generator().manual_seed(seed))


def test_masked_tokens_get_the_network_and_visible_ones_are_certain():
    process, answer = Masking(3), logits(2)
    x0 = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    xt = process.corrupt(x0, 0.5, Noise.of(1, 2))
    masked = xt == process.mask
    assert 0 < masked.sum() < 10
    net = Net(lambda x, noise: answer)
    q = TokenNetwork(net, process, (5,))(xt, 0.5)
    torch.testing.assert_close(q.log_probs[masked], answer.log_softmax(-1)[masked])
    assert torch.equal(q.mean[~masked], nn.functional.one_hot(x0, 3).float()[~masked])
    torch.testing.assert_close(q.mean.sum(-1), torch.ones(2, 5))
    assert torch.equal(net.x, xt)
    # with nothing left to reveal the bridge stands still
    assert torch.equal(process.bridge(x0, TokenNetwork(net, process, (5,))(x0, 0.5), 0.5, 0.1, Noise.of(0, 2)), x0)


def test_uniform_tokens_are_all_in_doubt():
    net, xt = Net(lambda x, noise: logits(2)), torch.zeros(2, 5, dtype=torch.long)
    q = TokenNetwork(net, UniformTokens(3), (5,))(xt, 0.5)
    torch.testing.assert_close(q.log_probs, logits(2).log_softmax(-1))


def test_the_noise_of_tokens_is_the_lost_fraction_as_an_angle():
    net = Net(lambda x, noise: logits(4))
    network = TokenNetwork(net, Masking(3, Trig()), (5,))
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    network(torch.zeros(4, 5, dtype=torch.long), t)
    expected = [(1 - math.cos(math.pi / 2 * u)) * math.pi / 2 for u in t.tolist()]
    assert net.noise.dtype == torch.float32 and net.noise.tolist() == pytest.approx(expected, abs=1e-6)
    network(torch.zeros(4, 5, dtype=torch.long), 0.25)
    assert net.noise.tolist() == pytest.approx([expected[1]] * 4, abs=1e-6)


def test_a_network_keeps_its_own_precision_and_the_state_its_own():
    class Half(nn.Linear):
        def forward(self, x, noise, cond=None):
            assert x.dtype == torch.float32 and noise.dtype == torch.float32
            return super().forward(x)

    net = Half(3, 3)
    network = Network(net, Gaussian(Flow()), X0(), (3,))
    x = state(2, 3)
    mean = network(x, 0.5).mean
    assert mean.dtype == torch.float64
    scale = (0.5**2 + 0.25**2) ** -0.5
    assert torch.allclose(mean, nn.functional.linear((scale * x).float(), net.weight, net.bias).double())
