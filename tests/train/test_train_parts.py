"""The pieces of a training, each against its closed form."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from backdrift.config import from_config, to_config
from backdrift.errors import UserError
from backdrift.run import build_network
from backdrift.schedule import Flow
from backdrift.target import EDM_F
from backdrift.train import ema, guard, metrics, rate, stream
from backdrift.train.identity import describe
from backdrift.train.networks import UNetChoice
from backdrift.train.options import TrainOptions, for_pictures
from backdrift.train.precision import Precision, resolve
from backdrift.train.training import Training


def averaged(law, values, batch):
    """What `law` makes of a weight that takes these values after its steps, from an untrained start of 1000."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1000.0)
    average = ema.averaged_copy(net)
    for step, value in enumerate(values, 1):
        nn.init.constant_(net.weight, value)
        ema.update(ema.averageable(average), ema.averageable(net), law.keep(step * batch, batch))
    return float(average.weight)


def test_exponential_average_is_the_weighted_sum():
    values = [math.sin(0.1 * k) for k in range(200)]
    law = ema.Exponential(halflife=320, warmup=1e9)  # 20 steps of 16, no warm-up
    shares = [0.5 ** ((199 - k) / 20) * (1 - 0.5 ** (1 / 20)) for k in range(200)]
    expected = sum(s * v for s, v in zip(shares, values, strict=True)) + 1000 * 0.5 ** (200 / 20)
    assert math.isclose(averaged(law, values, 16), expected, rel_tol=1e-5)
    # in the warm-up a twentieth of the pictures seen halves it: step k keeps 2^(-20 / k)
    expected = 1000.0
    for k, value in enumerate(values[:8], 1):
        expected += (1 - 2 ** (-20 / k)) * (value - expected)
    assert math.isclose(averaged(ema.Exponential(10**9, 0.05), values[:8], 16), expected, rel_tol=1e-5)


def test_power_average_has_its_profile_and_forgets_the_start():
    law = ema.Power(0.1)
    g, n = law.exponent, 4000
    assert math.isclose(math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))), 0.1, rel_tol=1e-9)
    # averages of step/n and its square under (g + 1) u^g are (g + 1)/(g + 2) and (g + 1)/(g + 3)
    first = averaged(law, [k / n for k in range(1, n + 1)], 7)
    second = averaged(law, [(k / n) ** 2 for k in range(1, n + 1)], 7)
    assert math.isclose(first, (g + 1) / (g + 2), rel_tol=2e-3)
    assert math.isclose(math.sqrt(second - first**2), 0.1, rel_tol=0.02)
    with pytest.raises(UserError, match="width"):
        ema.Power(0.3)


def test_learning_rates():
    cosine, linear = rate.Cosine(0.1), rate.Linear(0.2)
    assert [cosine.factor(x) for x in (0.0, 0.05, 0.1)] == [0.0, 0.5, 1.0]
    assert math.isclose(cosine.factor(0.55), 0.5) and math.isclose(cosine.factor(1.0), 0.0, abs_tol=1e-12)
    assert math.isclose(cosine.factor(0.325), (1 + math.sqrt(0.5)) / 2)
    assert math.isclose(linear.factor(0.6), 0.5) and math.isclose(linear.factor(0.1), 0.5)
    assert rate.Constant(0.0).factor(0.0) == 1.0 == rate.Constant(0.0).factor(0.99)
    with pytest.raises(UserError, match="warm-up"):
        rate.Cosine(1.0)


def test_every_epoch_shows_each_picture_once_however_it_is_cut():
    whole = stream.indices(torch.arange(30), 10, 3)
    assert all(sorted(part.tolist()) == list(range(10)) for part in whole.split(10))
    assert not torch.equal(whole[:10], whole[10:20])
    assert torch.equal(torch.cat([stream.indices(p, 10, 3) for p in torch.arange(30).split(7)]), whole)
    assert not torch.equal(stream.indices(torch.arange(10), 10, 4), whole[:10])


def test_mirroring_is_left_to_right_for_half_of_the_samples(pictures, options):
    positions, cpu = torch.arange(2000), torch.device("cpu")
    drawn = stream.draw(pictures, options, positions, cpu)
    plain = pictures.tensor(stream.indices(positions, len(pictures), options.seed))
    mirrored = (drawn.x0 == plain.flip(-1)).flatten(1).all(1)
    assert torch.equal(drawn.x0[~mirrored], plain[~mirrored])
    assert abs(float(mirrored.double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(2000)


def make_training(pictures, options, net):
    part, held_out = pictures.split()
    config = describe(pictures, part, held_out, options, None, ())
    network = build_network(options, config["data"], net)
    return Training(options, part, held_out, network, Precision.fp32, torch.device("cpu"))


def test_gradient_does_not_depend_on_how_the_batch_is_split(pictures, options, tiny):
    gradients = []
    for parts in (1, 3, 16):
        net = tiny()
        net.drop.p = 0.0
        training = make_training(pictures, options, net)
        losses, _ = training.gradient(training.places(), parts)
        gradients.append((losses, *(p.grad for p in net.parameters())))
    for other in gradients[1:]:
        for mine, theirs in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_window_sorts_losses_by_noise_angle():
    window = metrics.new_window()
    t = torch.tensor([0.01, 0.5, 0.5, 0.99], dtype=torch.float64)
    metrics.add(window, torch.tensor([1.0, 2.0, 4.0, 8.0]), t, Flow(), 1.0)
    mean, by_noise = metrics.means(window)
    assert mean == 3.75 and by_noise == [1.0, None, None, None, 3.0, None, None, 8.0]


def test_validation_is_the_same_every_time_and_leaves_no_trace(pictures, options, tiny):
    training = make_training(pictures, options, tiny())
    first = training.validate()
    torch.rand(5)
    assert training.validate() == first and all(p.grad is None for p in training.averaged.net.parameters())


def test_options_survive_json_and_bad_ones_are_refused(pictures):
    options = replace(for_pictures(pictures), precision=Precision.bf16, average=ema.Exponential(5), rate=rate.Linear())
    assert from_config(to_config(options)) == options
    assert isinstance(options.target, EDM_F) and math.isclose(
        options.target.sigma_data, pictures.split()[0].std, abs_tol=1e-4
    )
    for bad in ({"steps": 0}, {"lr": 0.0}, {"label_dropout": 1.5}, {"parts": 99}, {"validate_every": -1}):
        with pytest.raises(UserError, match=next(iter(bad)) if "parts" not in bad else "99 parts"):
            replace(TrainOptions(), **bad)


@pytest.mark.parametrize("side", [8, 28, 32, 64, 100])
def test_default_networks_can_be_built(pictures, side):
    wide = replace(pictures, pixels=pictures.pixels.repeat(1, 3, side // 4, side // 4))
    net = for_pictures(wide).net
    assert isinstance(net, UNetChoice)
    with torch.device("meta"):
        net.build(wide.shape, 3)


def test_precision_is_decided_once_and_only_when_asked():
    cpu = torch.device("cpu")
    assert resolve(Precision.bf16, cpu) is Precision.bf16 and resolve(Precision.fp32, cpu) is Precision.fp32
    assert resolve(Precision.auto, cpu) in (Precision.bf16, Precision.fp32)


def test_batch_that_fits_is_found_by_halving():
    tried = []

    def trial(count):
        tried.append(count)
        if count > 20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    assert guard.batch_that_fits(128, trial) == 16 and tried == [64, 32, 16]

    def broken(count):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        guard.batch_that_fits(128, broken)
