"""The denoising loss against the mean square error in target space and against closed forms."""

import math

import pytest
import torch
from torch import nn

from backdrift import schedule as sch
from backdrift import target as tgt
from backdrift.denoiser import Denoiser, Network
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.objective import denoising, drop_conditions
from backdrift.posterior import CategoricalPosterior, FieldsPosterior, TensorPosterior, expand
from backdrift.process import Gaussian, Masking, Product

TARGETS = [tgt.X0(), tgt.EPS(), tgt.V(), tgt.VELOCITY(), tgt.SCORE(), tgt.EDM_F(0.7)]


class Affine(nn.Module):
    """Any function of state and noise; remembers what it returned."""

    def forward(self, x, noise, cond):
        self.said = 0.3 * x + noise[:, None, None] - 0.2
        return self.said


class Given(Denoiser):
    """A denoiser that returns what it was made with."""

    def __init__(self, process, event_shape, posterior):
        super().__init__()
        self.process, self.event_shape, self.posterior = process, event_shape, posterior

    def forward(self, xt, t, cond=None):
        return self.posterior(xt, t) if callable(self.posterior) else self.posterior


@pytest.mark.parametrize("schedule", [sch.VP(), sch.EDM(), sch.Tabulated.linear(steps=50)])
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: type(t).__name__)
def test_weight_makes_it_the_square_error_of_the_prediction(target, schedule):
    noise, t = Noise.of(0, 6), torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    x0 = torch.linspace(-1, 1, 72, dtype=torch.float64).view(6, 3, 4)
    net = Affine()
    loss = denoising(Network(net, Gaussian(schedule), target, (3, 4), 0.7), x0, t, noise)
    a, b = (expand(c, x0) for c in target.row(schedule, t))
    expected = (net.said - (a * x0 + b * noise.normal(x0))).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)


def test_optimum_on_gaussian_data_has_the_posterior_variance_as_its_loss():
    std, n = 0.6, 200_000
    process = Gaussian(sch.VP())
    x0 = 0.3 + std * Noise.of(1, n).normal(torch.zeros(n, 1, dtype=torch.float64))
    for time in (0.1, 0.5):
        alpha, sigma = (float(c) for c in process.schedule.alpha_sigma(time))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)

        def loss(factor, offset=0.0, gain=gain, alpha=alpha, time=time):
            best = Given(
                process, (1,), lambda xt, t: TensorPosterior(0.3 + factor * gain * (xt - alpha * 0.3) + offset)
            )
            t = torch.full((n,), time, dtype=torch.float64)
            return float(denoising(best, x0, t, Noise.of(2, n), weight=torch.ones_like).mean())

        variance = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
        assert abs(loss(1.0) - variance) < 5 * variance * math.sqrt(2 / n)
        assert loss(1.0) < min(loss(0.8), loss(1.2), loss(1.0, 0.1), loss(1.0, -0.1))


def test_tokens_and_products_need_a_weight_and_are_divided_by_their_elements():
    tokens, picture = torch.tensor([[0, 2, 1, 1]] * 4000), torch.zeros(4000, 6)
    uniform = CategoricalPosterior(torch.full((4000, 4, 3), -math.log(3)))
    noise, t = Noise.of(0, 4000), torch.full((4000,), 0.25, dtype=torch.float64)
    masking = Masking(3)
    single = denoising(Given(masking, (4,), uniform), tokens, t, noise, weight=lambda t: 2 / t)
    # a quarter of the positions is masked, each costs log 3, and the weight is 8
    expected = 8 * math.log(3) / 4
    assert abs(float(single.mean()) - expected) < 5 * 8 * math.log(3) * math.sqrt(0.25 * 0.75 / 16000)

    process = Product({"words": masking, "picture": Gaussian(sch.Flow())})
    both = Given(process, {"words": (4,), "picture": (6,)}, FieldsPosterior({"words": uniform, "picture": _point(0.5)}))
    x0 = {"words": tokens, "picture": picture}
    loss = denoising(both, x0, t, noise, weight=torch.ones_like)
    masked = (masking.corrupt(tokens, t, noise.at("words")) == 3).sum(1)
    torch.testing.assert_close(loss, (masked * math.log(3) + 6 * 0.25) / 10, check_dtype=False)

    with pytest.raises(UserError, match="needs a weight"):
        denoising(both, x0, t, noise)


def _point(value):
    return TensorPosterior(torch.full((4000, 6), value))


def test_conditions_are_dropped_at_the_rate_and_by_sample():
    n, nulls = 20_000, {"label": 7, "text": 0}
    cond = {"label": torch.arange(n) % 7}
    dropped = drop_conditions(cond, Noise.of(0, n), 0.1, nulls)
    share = float((dropped["label"] == 7).double().mean())
    assert abs(share - 0.1) < 5 * math.sqrt(0.09 / n)
    kept = dropped["label"] != 7
    assert torch.equal(dropped["label"][kept], cond["label"][kept])
    index = torch.tensor([19_000, 3, 52, 4])
    alone = drop_conditions({"label": cond["label"][index]}, Noise(0, index), 0.1, nulls)
    assert torch.equal(alone["label"], dropped["label"][index])
    assert drop_conditions(cond, Noise.of(0, n), 0.0, nulls) is cond
    assert bool((drop_conditions(cond, Noise.of(0, n), 1.0, nulls)["label"] == 7).all())
    assert drop_conditions({}, Noise.of(0, n), 0.5, nulls) == {}


def test_several_conditions_are_dropped_together_and_each_alone():
    """All in 10 % of the samples; of the other 90 %, each in 10 % by a coin of its own."""
    n = 20_000
    cond = {"label": torch.arange(n) % 7, "text": torch.ones(n, 4, dtype=torch.int64)}
    dropped = drop_conditions(cond, Noise.of(0, n), 0.1, {"label": 7, "text": 0})
    label, text = dropped["label"] == 7, (dropped["text"] == 0).all(1)
    assert torch.equal(text, (dropped["text"] == 0).any(1))  # a text is hidden whole
    for found, wanted in ((label & text, 0.1 + 0.9 * 0.01), (label & ~text, 0.9 * 0.09), (text & ~label, 0.9 * 0.09)):
        share = float(found.double().mean())
        assert abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / n)
