"""Every registered solver that draws noise: its law, its path, and its independence of the batch."""

import itertools

import pytest
import torch

from backdrift.exact import Mixture
from backdrift.noise import Noise
from backdrift.process import Gaussian
from backdrift.sample import sample
from backdrift.sample.audit import (
    Line,
    budgeted,
    is_stochastic,
    registered,
    strong_gap,
    strong_order,
)
from backdrift.sample.grids import DataScaled, LogSNR
from backdrift.sample.solver import Solver
from backdrift.schedule import EDM, VP, Flow

SAMPLERS = {name: s for name, s in registered().items() if is_stochastic(s, VP(), DataScaled().times(VP(), 4))}
TABLES = {name: s for name, s in SAMPLERS.items() if isinstance(s, Solver)}
PATHS = {name: s for name, s in TABLES.items() if s.strong}
every_table = pytest.mark.parametrize("name", TABLES)
every_path = pytest.mark.parametrize("name", PATHS)
MEAN, VARIANCE = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)


def normal_data(schedule):
    one = Mixture(torch.ones(1), MEAN[None], VARIANCE)
    return Line(one, schedule).denoiser


def inner(schedule, n):
    return LogSNR().times(schedule, n, float(schedule.time(-4.0)), float(schedule.time(4.0)))


def test_what_is_looked_at():
    assert len(SAMPLERS) == len(TABLES) + 1 and len(TABLES) == len(PATHS) + 1
    assert set(SAMPLERS) - set(PATHS) == {"Predictor-corrector", "Annealed Langevin"}  # see their docstrings


@every_table
def test_the_law_from_the_table_is_that_of_simulation(name):
    schedule, count = VP(), 5000
    plan = budgeted(TABLES[name], schedule, 6, DataScaled())
    noise = Noise.of(1, count)
    like = torch.zeros(count, 1, dtype=torch.float64)
    x1 = noise.at("prior").normal(like) * float(schedule.alpha_sigma(1.0)[1])
    out = plan.run(normal_data(schedule), x1, None, noise)
    expected_mean, expected_variance = plan.law(MEAN, VARIANCE)
    error = float(expected_variance / count) ** 0.5
    assert abs(float(out.mean() - expected_mean)) < 4 * error
    assert float(out.var() / expected_variance) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)


@every_table
def test_the_gains_from_the_table_are_those_of_a_run(name):
    """Run on given noises: the output is gain x_1 + offset + sum_m noise[m] xi_m, number by number."""
    schedule, generator = EDM(), torch.Generator().manual_seed(0)
    plan = budgeted(TABLES[name], schedule, 6, DataScaled())
    draws = len(plan.noise_intervals)
    x1, *xi = torch.randn(draws + 1, 32, 1, generator=generator, dtype=torch.float64)
    out = plan.run(normal_data(schedule), x1, None, xi)
    run = plan.affine(MEAN, VARIANCE)
    expected = run.gain * x1 + run.offset + sum(gain * draw for gain, draw in zip(run.noise, xi, strict=True))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)


@every_path
def test_twice_the_steps_follow_the_same_path(name):
    """On Gaussian data the distance of two runs is known; independent paths would be about one deviation apart."""
    schedule, count = VP(), 1000
    coarse, fine = (PATHS[name].plan(schedule, inner(schedule, n)) for n in (16, 32))
    alpha, sigma = (float(v) for v in schedule.alpha_sigma(coarse.start))
    noise, denoiser = Noise.of(5, count), normal_data(schedule)
    start = (alpha**2 * VARIANCE + sigma**2).sqrt()
    x1 = alpha * MEAN + start * noise.at("prior").normal(torch.zeros(count, 1, dtype=torch.float64))
    one, two = (plan.run(denoiser, x1, None, noise) for plan in (coarse, fine))
    expected = strong_gap(coarse, fine, MEAN, VARIANCE)
    assert float((one - two).square().mean().sqrt()) == pytest.approx(expected, rel=0.1)
    assert expected < 0.25 * float(VARIANCE) ** 0.5


@every_path
def test_stated_strong_order_on_gaussian_data(name):
    order = strong_order(PATHS[name], VP(), (48, 96))
    assert PATHS[name].strong - 0.15 <= order <= PATHS[name].strong + 0.27, order


@pytest.mark.slow
@every_path
@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow()], ids=lambda s: s.kind)
def test_stated_strong_order_on_finer_grids(name, schedule):
    order = strong_order(PATHS[name], schedule, (192, 384))
    assert abs(order - PATHS[name].strong) <= 0.12, order


def mixture_gaps(name, counts, schedule, samples):
    """Root mean square distances between n and 2n steps on a mixture whose modes overlap, so that none is switched."""
    weights, means = torch.tensor([0.4, 0.6]), torch.tensor([[-0.6], [0.7]], dtype=torch.float64)
    line = Line(Mixture(weights, means, torch.tensor([0.2, 0.3], dtype=torch.float64)), schedule)
    x1, _ = line.ends(samples, float(schedule.time(-4.0)), float(schedule.time(4.0)))
    runs = [
        PATHS[name].run(line.denoiser, x1, inner(schedule, n), None, Noise.of(2, samples))
        for n in (*counts, 2 * counts[-1])
    ]
    return [float((a - b).square().mean().sqrt()) for a, b in itertools.pairwise(runs)]


@every_path
def test_more_steps_refine_the_path_on_a_mixture(name):
    before, after = mixture_gaps(name, (16, 32), VP(), 200)
    assert after < 0.7 * before < 0.15, (before, after)


@pytest.mark.slow
@every_path
@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow()], ids=lambda s: s.kind)
def test_stated_strong_order_on_a_mixture(name, schedule):
    gaps = mixture_gaps(name, (80, 160, 320), schedule, 4000)
    order = float(torch.tensor(gaps[0] / gaps[-1]).log2() / 2)
    assert PATHS[name].strong - 0.25 <= order <= PATHS[name].strong + 0.35, gaps


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    means = torch.tensor([[0.7, -0.4, 0.1], [-0.5, 0.6, -0.8]], dtype=torch.float64)
    denoiser = Mixture(torch.tensor([1.0, 2.0]), means, 0.02).denoiser(Gaussian(Flow()))

    def draw(*index):
        return sample(denoiser, index=index, solver=SAMPLERS[name], steps=12, seed=11)

    whole = draw(*range(9))
    assert len(whole.unique(dim=0)) == 9
    for index in ((4,), (8, 0, 3), (2, 5, 6, 7)):
        torch.testing.assert_close(draw(*index), whole[list(index)], rtol=0, atol=1e-5)
