import math

import numpy as np
import pytest
import torch
from cases import SCHEDULES

from backdrift.config import from_config, kinds, to_config
from backdrift.errors import UserError
from backdrift.sample.grids import (
    Angle,
    DataScaled,
    Grid,
    Karras,
    Leading,
    Linspace,
    LogSNR,
    Quadratic,
    ShiftedUniform,
    Trailing,
    Uniform,
)
from backdrift.schedule import EDM, VP, Cosine, Flow, Tabulated

GRIDS = [Uniform(), ShiftedUniform(3.0), Quadratic(), Angle(), DataScaled(), DataScaled(2.0), LogSNR(), Karras()]
GRIDS += [Karras(rho=1.0), DataScaled(0.5, last=0.5)]
DISCRETE = [Trailing(), Leading(), Leading(offset=1), Linspace()]
# what each grid is uniform in, written from t, alpha and sigma
CLOCKS = {
    Uniform(): lambda t, a, s: t,
    ShiftedUniform(3.0): lambda t, a, s: t / (3 - 2 * t),
    Quadratic(): lambda t, a, s: t**0.5,
    Angle(): lambda t, a, s: torch.atan2(s, a),
    DataScaled(): lambda t, a, s: s / (s + 0.5 * a),
    DataScaled(2.0): lambda t, a, s: s / (s + 2 * a),
    LogSNR(): lambda t, a, s: (s / a).log(),
    Karras(): lambda t, a, s: (s / a) ** (1 / 7),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every_schedule
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_times_fall_strictly_and_their_ends_are_exact(schedule, grid):
    for n in (*range(1, 13), 50, 199, 200):
        times = grid.times(schedule, n)
        assert times.shape == (n + 1,) and times.dtype == torch.float64
        assert times[0] == 1 and times[-1] == 0 and bool((times.diff() < 0).all())
        part = grid.times(schedule, n, start=0.8, end=0.1)
        assert part[0] == 0.8 and part[-1] == 0.1 and bool((part.diff() < 0).all())


@every_schedule
@pytest.mark.parametrize("grid", CLOCKS, ids=repr)
def test_a_grid_is_uniform_in_its_clock(schedule, grid):
    # within a stretch that no grid limits
    start, end = (float(schedule.time(logsnr)) for logsnr in (-5.0, 5.0))
    times = grid.times(schedule, 9, start, end)
    gaps = CLOCKS[grid](times, *schedule.alpha_sigma(times)).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(9), rtol=1e-7, atol=0)
    if not isinstance(grid, (LogSNR, Karras)):
        times = grid.times(schedule, 9)
        gaps = CLOCKS[grid](times, *schedule.alpha_sigma(times)).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(9), rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", [Flow(), Cosine()], ids=lambda s: s.kind)
def test_grids_that_are_infinite_at_the_ends_join_them_by_one_step(schedule):
    times = LogSNR(low=-8.0, high=6.0).times(schedule, 10)
    torch.testing.assert_close(schedule.logsnr(times[1:-1]), torch.linspace(-8, 6, 9).double(), rtol=0, atol=1e-9)
    times = Karras(smallest=0.01, largest=20.0).times(schedule, 10)
    ratios = (-schedule.logsnr(times[1:-1]) / 2).exp()
    levels = [(20 ** (1 / 7) + i / 8 * (0.01 ** (1 / 7) - 20 ** (1 / 7))) ** 7 for i in range(9)]
    torch.testing.assert_close(ratios, torch.tensor(levels, dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_published_noise_levels_of_edm():
    # Karras et al. 2022, Eq. 5 with 18 levels
    levels = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    for grid in (Karras(), Uniform()):
        _, sigma = EDM().alpha_sigma(grid.times(EDM(), 17))
        np.testing.assert_allclose(sigma.numpy(), levels, rtol=1e-10)


def entries(times):
    return np.rint(times[:-1].numpy() * 1000).astype(int) - 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10, 20, 25, 50, 99, 300, 1000])
def test_discrete_grids_are_the_index_formulas_of_their_sources(n):
    trailing = np.round(1000 - np.arange(n) * (1000 / n)) - 1
    leading = (np.arange(n) * (1000 // n))[::-1]
    linspace = np.linspace(0, 999, n).round()[::-1]
    assert np.array_equal(entries(Trailing().times(VP(), n)), trailing)
    assert np.array_equal(entries(Leading().times(VP(), n)), leading)
    if n < 1000:
        assert np.array_equal(entries(Leading(offset=1).times(VP(), n)), leading + 1)
    assert np.array_equal(entries(Linspace().times(VP(), n)), linspace)


@pytest.mark.parametrize("table", [1000, 250])
def test_discrete_grids_round_as_diffusers_does(table):
    """Its float expressions one entry at a time, by Python's own round, half to even; exact halves are not rare."""
    halves = 0
    for n in range(2, table + 1):
        step = (table - table / n) - table  # as numpy counts a range: the second value less the first
        trailing = [round(table + i * step) - 1 for i in range(n)]
        gap = (table - 1) / (n - 1)
        linspace = [round(i * gap) for i in range(n - 1)] + [table - 1]
        for grid, expected in ((Trailing(table), trailing), (Linspace(table), linspace[::-1])):
            times = grid.times(VP(), n)
            assert np.array_equal(np.rint(times[:-1].numpy() * table) - 1, expected), (grid, n)
            assert bool((times.diff() < 0).all())
        halves += sum((2 * i * table) % n == 0 and (2 * i * table // n) % 2 for i in range(n))
    assert halves > 0


@pytest.mark.parametrize("grid", DISCRETE, ids=repr)
def test_discrete_grids_fall_to_zero_and_hit_the_table(grid):
    table = Tabulated.linear()
    for n in (1, 2, 5, 17, 200):
        times = grid.times(table, n)
        assert times.shape == (n + 1,) and times[-1] == 0 and bool((times.diff() < 0).all())
        bars = torch.tensor(table.alphas_bar, dtype=torch.float64)[entries(times)]
        torch.testing.assert_close(table.alpha_sigma(times[:-1])[0] ** 2, bars, rtol=1e-9, atol=0)
    assert (grid.times(table, 20)[0] == 1) == (not isinstance(grid, Leading))


def test_refusals():
    for call, sentence in (
        (lambda: Uniform().times(Flow(), 0), "at least 1 step, not 0"),
        (lambda: Trailing().times(Flow(), 0), "1 to 1000 steps, not 0"),
        (lambda: Trailing().times(Flow(), 1001), "1 to 1000 steps, not 1001"),
        (lambda: Uniform().times(Flow(), 3, start=0.2, end=0.2), "not from 0.2 to 0.2"),
        (lambda: Uniform().times(Flow(), 3, start=1.1), "not from 1.1"),
        (lambda: Uniform().times(Flow(), 3, start=math.nan), "not from nan"),
        (lambda: Leading().times(Flow(), 3, start=0.5), "covers the whole"),
        (lambda: Leading(offset=5).times(Flow(), 1000), r"lie in \[0, 1\]"),
        (lambda: LogSNR().times(Flow(), 5, start=1e-4), "take another grid"),
        (lambda: Karras().times(Flow(), 5, start=1e-4), "take another grid"),
        (lambda: LogSNR(low=3.0, high=-3.0), "low < high"),
        (lambda: DataScaled(0.0), "a scale and a last interval > 0"),
        (lambda: Karras(rho=0.0), "rho > 0"),
        (lambda: Karras(smallest=2.0, largest=1.0), "smallest < largest"),
    ):
        with pytest.raises(UserError, match=sentence):
            call()


def test_configs_bring_the_same_grid_back():
    for grid in (*GRIDS, *DISCRETE):
        assert from_config(to_config(grid)) == grid
    ours = {cls for cls in kinds("grid").values() if cls.__module__ == Grid.__module__}
    assert ours == {type(grid) for grid in (*GRIDS, *DISCRETE)}
