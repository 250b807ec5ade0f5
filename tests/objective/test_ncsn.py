"""The advice for noise-conditional score networks against brute force, the paper's own constants and exact laws."""

import json
import math

import pytest
import torch
from scipy import stats

from backdrift import schedule as sch
from backdrift import target as tgt
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.nets import MLP
from backdrift.noise import Noise
from backdrift.objective import Uniform, denoising, noise_ladder
from backdrift.objective.ncsn import langevin_size, largest_distance, level_ratio, level_variance
from backdrift.process import Gaussian
from backdrift.sample import grids
from backdrift.sample.langevin import AnnealedLangevin
from command import TINY


def test_the_constants_of_the_paper_for_cifar_10():
    """Song and Ermon 2020, appendix: 232 levels from 50 to 0.01 in 3072 dimensions, T = 5, eps = 6.2e-6."""
    ratio = (50 / 0.01) ** (1 / 231)
    assert level_ratio(3072) == pytest.approx(ratio, abs=0.003)
    eps = langevin_size(ratio, 5) / 2 * 0.01**2
    assert eps == pytest.approx(6.2e-6, rel=0.01)


def test_the_ratio_leaves_half_of_a_level_within_reach_of_the_one_above():
    for dimension in (10, 64, 3072):
        ratio, root = level_ratio(dimension), math.sqrt(dimension)
        above, deviation = root * ratio, ratio / math.sqrt(2)
        law = stats.norm(root, 1 / math.sqrt(2))
        assert law.cdf(above + 3 * deviation) - law.cdf(above - 3 * deviation) == pytest.approx(0.5, abs=1e-9)
    assert level_ratio(2) == pytest.approx(10)


def test_the_variance_of_a_level_is_that_of_the_plan():
    """For data at one point, from the level above: the exact law of a plan of two levels, whose last step is a hold."""
    schedule, inner, size = sch.VE(0.1, 0.8), 4, 0.3
    plan = AnnealedLangevin(size, inner, published=True).plan(schedule, grids.Uniform().times(schedule, 3)[:3])
    _, found = plan.law(torch.zeros(()).double(), torch.zeros(()).double(), (0.0, 1.6**2))
    entering = level_variance(size, 1.6 / 0.8, inner)
    leaving = level_variance(size, 2 * math.sqrt(entering), inner - 1)  # the levels are 0.8, 0.4, 0.2
    assert float(found) == pytest.approx(leaving * 0.2**2, rel=1e-9)


@pytest.mark.parametrize(("ratio", "inner"), [(1.04, 5), (1.36, 5), (1.36, 20), (3.0, 1)])
def test_the_size_is_the_best_one(ratio, inner):
    size = langevin_size(ratio, inner)
    best = level_variance(size, ratio, inner)
    assert 1 < best < min(level_variance(f * size, ratio, inner) for f in (0.8, 0.95, 1.05, 1.25)) < ratio**2


def test_a_ladder_is_made_of_its_parts():
    x = Noise.of(0, 1500).normal(torch.zeros(1500, 2, 8))
    farthest = max(float((x - row).flatten(1).norm(dim=1).max()) for row in x)
    assert largest_distance(x) == pytest.approx(farthest, rel=1e-5)
    ladder = noise_ladder(x[:500], inner=3, finest=0.02)
    assert ladder.evaluations == 3 * ladder.levels
    times = grids.Uniform().times(ladder.schedule, ladder.levels)
    sigma = ladder.schedule.alpha_sigma(times)[1]
    assert float(sigma[0]) == pytest.approx(largest_distance(x[:500])) and float(sigma[-1]) == pytest.approx(0.02)
    ratios = sigma[:-1] / sigma[1:]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))
    assert 0.9 * level_ratio(16) < float(ratios[0]) <= level_ratio(16)
    assert ladder.solver.size == langevin_size(float(ratios[0]), 3)
    assert ladder.solver.plan(ladder.schedule, times).evaluations == ladder.evaluations


def test_on_gaussian_data_the_ladder_ends_too_wide_and_holding_does_not():
    """The exact law of the whole run, in each of 64 dimensions; docs/measured.md has these figures."""
    ladder = noise_ladder(torch.stack([torch.zeros(64), torch.full((64,), 1.25)]))
    times = grids.Uniform().times(ladder.schedule, ladder.levels)
    mean, variance, start = torch.tensor(0.2).double(), torch.tensor(0.25).double(), (0.0, 100.0)
    laws = [s.plan(ladder.schedule, times).law(mean, variance, start) for s in (ladder.solver, AnnealedLangevin())]
    assert [float(m) for m, _ in laws] == pytest.approx([0.2, 0.2], abs=1e-3)
    assert [float(v) for _, v in laws] == pytest.approx([0.344, 0.240], abs=1e-3)


def test_the_loss_is_score_matching_weighted_by_sigma_squared():
    """Song and Ermon 2019, Eq. 5 and 6, with the network's output over sigma as the score."""
    torch.manual_seed(0)
    net, schedule = MLP(4, width=8, blocks=1), sch.VE(0.05, 3.0)
    torch.nn.init.normal_(net.exit.weight)
    network = Network(net, Gaussian(schedule), tgt.SCORE(), (4,))
    noise = Noise.of(0, 50)
    x0, t = noise.at("x").normal(torch.zeros(50, 4, dtype=torch.float64)), Uniform().times(noise, schedule)
    sigma, eps = schedule.alpha_sigma(t)[1][:, None], noise.normal(x0)
    xt = x0 + sigma * eps
    scaled = xt / (sigma**2 + 0.25).sqrt()
    score = net(scaled.float(), torch.atan2(sigma, torch.tensor(0.5))[:, 0].float(), None).double() / sigma
    expected = (sigma**2 * (score + eps / sigma) ** 2).mean(1)
    torch.testing.assert_close(denoising(network, x0, t, noise), expected, rtol=1e-5, atol=1e-6)
    # equal steps of time are equal steps of log sigma
    torch.testing.assert_close(
        sigma.log().mean(), (schedule.logsnr(torch.tensor([0.0, 1.0])) / -2).mean(), atol=0.05, rtol=0
    )


def test_the_whole_path_from_the_command_line(cli, tmp_path):
    run, out = tmp_path / "run", tmp_path / "grid.png"
    assert cli("train", "--run", run, "--schedule", "ve", "--target", "score", "--times", "uniform", *TINY)[0] == 0
    options = json.loads((run / "config.json").read_text())["options"]
    assert (options["schedule"]["kind"], options["target"]["kind"]) == ("schedule.VE", "target.SCORE")
    words = ("--solver", "annealedlangevin", "--grid", "uniform", "--steps", 15, "--n", 2, "--out", out)
    assert cli("sample", run, *words)[0] == 0 and out.exists()


def test_mistakes_are_one_sentence():
    x = torch.zeros(3, 2)
    for call, words in (
        (lambda: noise_ladder(x), "must lie between"),
        (lambda: noise_ladder(x[:1]), "at least two"),
        (lambda: noise_ladder(x, inner=0), "at least 1 Langevin"),
        (lambda: level_ratio(0), "at least 1"),
        (lambda: langevin_size(1.0, 3), "above 1"),
    ):
        with pytest.raises(UserError, match=words):
            call()
