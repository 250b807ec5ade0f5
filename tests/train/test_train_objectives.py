"""Trainings with every objective: they stop and continue, load, sample, and are reached from the command line."""

from dataclasses import replace

import pytest
import torch

from backdrift import objective as obj
from backdrift.cli.train import LossOptions, Train, choices
from backdrift.config import from_config, to_config
from backdrift.errors import UserError
from backdrift.likelihood import BySteps, score
from backdrift.noise import Noise
from backdrift.run import Run, build_network, load_network
from backdrift.sample.solvers import Bridge
from backdrift.schedule import Flow
from backdrift.train import stream
from backdrift.train.identity import describe
from backdrift.train.loop import train
from backdrift.train.networks import DiTChoice, FileNet, MPUNetChoice, UNetChoice
from backdrift.train.options import TrainOptions, for_pictures
from backdrift.train.precision import Precision
from backdrift.train.training import Training
from command import TINY

EVERYTHING = obj.Denoising(obj.MinSNR(), obj.Uncertainty(8), obj.Hybrid(steps=20), 0.5)
SMALL = UNetChoice(width=16, multipliers=(1,), blocks=1, attention=(), dropout=0.1)


@pytest.fixture
def whole(options):
    """Uncertainty, variances, self-conditioning and transport together."""
    pairing = obj.OptimalTransport(8)
    return replace(options, net=SMALL, steps=7, checkpoint_every=4, objective=EVERYTHING, pairing=pairing)


@pytest.fixture
def by_loss(options):
    law = obj.ByLoss(options.times, bins=3, floor=0.3)
    return replace(
        options, times=law, objective=obj.Denoising(obj.Bound()), schedule=Flow(), steps=7, checkpoint_every=4
    )


class Crash(Exception):
    pass


def crash(progress):
    if progress.step == 5:
        raise Crash


def same_after_a_crash(folder, pictures, options, net=lambda: None):
    straight = train(pictures, options, net=net())
    with pytest.raises(Crash):
        train(pictures, options, run=folder, net=net(), on_progress=crash)
    cut = train(pictures, options, run=folder, net=net())
    first, second = straight.network.net.state_dict(), cut.network.net.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_training_continues_with_its_head(tmp_path, pictures, whole):
    assert same_after_a_crash(tmp_path, pictures, whole)


def test_a_stopped_training_continues_with_its_memory_of_the_losses(tmp_path, pictures, by_loss, tiny):
    assert same_after_a_crash(tmp_path, pictures, by_loss, tiny)


def make_training(pictures, options, net=None):
    part, held_out = pictures.split()
    network = build_network(options, describe(pictures, part, held_out, options, None, ())["data"], net)
    return Training(options, part, held_out, network, Precision.fp32, torch.device("cpu"))


def test_the_head_learns_and_is_neither_clipped_nor_decayed(pictures, whole):
    training = make_training(pictures, replace(whole, clip=1e-9, weight_decay=1e3))
    for _ in range(3):
        training.advance()
    assert float(training.head.corners.detach().abs().max()) > 1e-5
    assert {tuple(group["params"]) for group in training.optimiser.param_groups} >= {tuple(training.head.parameters())}


def test_times_follow_the_losses_and_the_figures_do_not(pictures, by_loss, tiny):
    net = tiny()
    net.drop.p = 0.0
    training = make_training(pictures, by_loss, net)
    for _ in range(4):
        training.advance()
    chances = by_loss.times.chances(training.memory)
    assert float(training.memory[:, 2].sum()) == 4 * by_loss.batch and float(chances.max() / chances.min()) > 1.2
    count = training.window[:, 1].sum()
    assert 0.6 * 4 * by_loss.batch < float(count) < 1.6 * 4 * by_loss.batch and float(count) % 1 != 0
    gradients = []
    for parts in (1, 3):
        net.zero_grad()
        losses, drawn = training.gradient(training.places(), parts)
        gradients.append([losses, *drawn, *(p.grad.clone() for p in net.parameters())])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    # the gradient is that of the weighted mean
    net.zero_grad()
    places = training.places()
    samples = stream.draw(training.pictures, by_loss, places, training.device, training.memory)
    losses = by_loss.objective.losses(training.network, training.head, samples)
    (samples.share * losses.total).mean().backward()
    for mine, p in zip(gradients[0][4:], net.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-4, atol=1e-6)
    assert float(drawn.share.std()) > 0.05


def test_a_run_with_learned_variances_samples_and_scores(tmp_path, pictures, whole):
    train(pictures, whole, run=tmp_path)
    network = load_network(tmp_path)
    assert network.learned_variance and network.self_conditioning
    x = torch.zeros(3, 1, 4, 4)
    belief = network(x, 0.5, {"label": torch.tensor([0, 1, 2])})
    assert belief.mean.shape == belief.fraction.shape == x.shape
    states = Bridge().run(network, x + 1, torch.tensor([1.0, 0.5, 0.0]), noise=Noise.of(0, 3))
    assert states.shape == x.shape and bool(states.isfinite().all())
    found = score(network, pictures.tensor()[:4], BySteps(6), cond={"label": pictures.labels[:4]})
    assert "6 steps" in found.definition and sum(found.terms.values()) == pytest.approx(found.bits)


def test_configs_of_older_releases_still_load(options):
    config = to_config(options)
    for name in ("objective", "pairing"):
        del config[name]
    assert from_config(config) == options and options.objective == obj.Denoising()


@pytest.mark.parametrize("choice", [SMALL, MPUNetChoice(16, (1,), 1, (), 16), DiTChoice(width=64, depth=1)])
def test_networks_take_estimates_and_return_variances(choice):
    net = choice.build((2, 4, 4), 3, 5)
    with torch.no_grad():
        assert net(torch.ones(2, 2, 4, 4), torch.ones(2)).shape == (2, 5, 4, 4)


def test_own_networks_are_told_only_what_is_unusual(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, shape, classes): super().__init__()"
    )
    FileNet.of(f"{file}:Net").build((1, 4, 4), 0, 1)
    with pytest.raises(UserError, match=r"must accept Net\(shape=\(1, 4, 4\), classes=0, outputs=2\)"):
        FileNet.of(f"{file}:Net").build((1, 4, 4), 0, 2)


def test_uncertainty_and_importance_exclude_each_other():
    with pytest.raises(UserError, match="choose one of the two"):
        TrainOptions(objective=obj.Denoising(uncertainty=obj.Uncertainty()), times=obj.ByLoss())


def test_the_command_line_reaches_every_choice(cli, refused, tmp_path):
    words = ("--learned-variance", "--variance-steps", 9, "--uncertainty", "--self-conditioning", "--weight", "min-snr")
    more = ("--times", "lognormalsigma", "--optimal-transport", 4, "--schedule", "flow", "--steps", 2)
    status, _, err = cli("train", "--run", tmp_path / "a", *TINY, *words, *more)
    assert status == 0, err
    made = Run(tmp_path / "a").options()
    assert made.objective == obj.Denoising(obj.MinSNR(), obj.Uncertainty(), obj.Hybrid(steps=9), 0.5)
    assert made.pairing == obj.OptimalTransport(4) and made.times == obj.LogNormalSigma()
    status, out, err = cli("score", tmp_path / "a", "--method", "steps", "--steps", 3, "--n", 4)
    assert status == 0 and "model of" not in err and "bound of 3 steps" in out, err
    sentence = refused("train", "--run", tmp_path / "b", *TINY, "--uncertainty", "--importance")
    assert "choose one of the two" in sentence
    assert "add --learned-variance" in refused("train", "--run", tmp_path / "b", *TINY, "--variance-steps", 5)
    assert "no weight 'minsnr2'" in refused("train", "--run", tmp_path / "b", *TINY, "--weight", "minsnr2")
    assert "--method steps" in refused("score", tmp_path / "a", "--fraction", 0.5)


def test_the_command_line_fits_constants_to_the_data(pictures):
    made = choices(Train(target="v", loss=LossOptions(weight="edm", importance=True)), pictures)
    std = for_pictures(pictures).times.scale
    assert made.objective.weight == obj.EDM(std) and made.times == obj.ByLoss(obj.Angle(std)) and std != 1
    assert choices(Train(), pictures) == for_pictures(pictures)
