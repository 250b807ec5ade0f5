"""The default solver and grid: its gauge by finite differences, its order, its accuracy, and one rule for all."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases import SCHEDULES, GaussianData, fitted_order, interior

import backdrift as bd
from backdrift.exact import Mixture
from backdrift.guide import ClassifierFree
from backdrift.noise import Noise
from backdrift.process import Gaussian
from backdrift.sample.default import (
    LAST,
    LONG,
    SHARE,
    AdamsFlow,
    ScaledFlow,
    clock_scale,
    data_scale,
    default_grid,
    default_solver,
)
from backdrift.sample.grids import DataScaled
from backdrift.sample.ode import DPMpp
from backdrift.schedule import EDM, VP, Cosine, Flow

MEAN, VARIANCE = 0.3, 0.25


def three():
    means = torch.tensor([[1.0, 0.0], [-0.8, 0.9], [0.1, -1.1]], dtype=torch.float64)
    return Mixture(torch.tensor([1.0, 2.0, 3.0]), means, 0.02)


@pytest.mark.parametrize("unit", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("r", [0.02, 0.7, 9.0])
def test_gauge_rows_and_clock_are_derivatives_of_its_scale(unit, r):
    gauge, h = ScaledFlow(unit), 1e-5 * r
    low, high = (torch.tensor([1.0, s], dtype=torch.float64) / gauge.scale(1.0, s) for s in (r - h, r + h))
    dw = gauge.clock(1.0, r + h) - gauge.clock(1.0, r - h)
    assert torch.allclose((high - low) / dw, torch.tensor(gauge.row(1.0, r), dtype=torch.float64), rtol=1e-6)
    assert dw * r / (2 * h) == pytest.approx(float(gauge.rate(torch.tensor(math.log(r)).double().numpy())), rel=1e-6)
    assert gauge.ratio(gauge.clock(1.0, r)) == pytest.approx(r)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_rule_is_polynomials_fitted_and_integrated(n):
    """Re-derived by numpy's fits on Flow: z = x / c, dz = f dw; the past is pushed back in predictions alone."""
    k, schedule, denoiser = 0.4, Flow(), GaussianData(Flow())
    t = DataScaled(k, LAST).times(schedule, n).numpy()
    c = (1 - t) * k + t
    w = t / c

    def change(places, values, start, end):
        integral = np.polyint(np.polyfit(places, values, len(places) - 1))
        return np.polyval(integral, end) - np.polyval(integral, start)

    start, places, values = 1.3, [], []
    z = before = start / c[0]
    for i in range(n):
        x = z * c[i]
        D = float(denoiser(torch.tensor([[x]], dtype=torch.float64), float(t[i])).mean)
        f = (x - (1 - t[i]) * D) / t[i] - D / k
        if i:
            z = before + change([w[i], *places], [f, *values], w[i - 1], w[i])
        last = i == n - 1
        places, values = [w[i], *places][: 2 if last else 3], [f, *values][: 2 if last else 3]
        before, back = z, 1 + ((w[i] - w[i + 1]) / LONG) ** 2
        z = z + change([w[i] + back * (p - w[i]) for p in places], values, w[i], w[i + 1])
    out = AdamsFlow(k).plan(schedule, t).run(denoiser, torch.tensor([[start]], dtype=torch.float64))
    assert float(out) == pytest.approx(z * c[-1], abs=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_third_order_between_finite_noise_levels(name):
    schedule, counts, errors = SCHEDULES[name], [24, 48, 96], []
    for n in counts:
        plan = AdamsFlow(0.4).plan(schedule, interior(schedule, n))
        (a, s), (b, z) = (map(float, schedule.alpha_sigma(t)) for t in (plan.start, float(plan.times[-1])))
        gain = math.sqrt((b**2 * VARIANCE + z**2) / (a**2 * VARIANCE + s**2))
        run = plan.affine(MEAN, VARIANCE)
        errors.append(abs(float(run.gain) - gain) + abs(float(run.offset) - (b - gain * a) * MEAN))
    assert fitted_order(counts, errors) > 2.8, errors


@pytest.mark.parametrize("schedule", [VP(), Cosine(), EDM(), Flow()], ids=lambda s: s.kind)
def test_error_falls_to_both_ends_and_beats_dpmpp(schedule):
    """From pure noise to the schedule's end, infinite clocks included, against the reference flow."""
    denoiser = three().denoiser(Gaussian(schedule))
    x1 = denoiser.process.prior(torch.empty(256, 2, dtype=torch.float64), Noise.of(3, 256))
    end = denoiser.flow(x1, 1.0, 0.0, steps=60)

    def median(solver, n):
        plan = solver.plan(schedule, default_grid(denoiser).times(schedule, n))
        return float((plan.run(denoiser, x1) - end).norm(dim=1).median())

    solver = default_solver(denoiser)
    errors = [median(solver, n) for n in (5, 10, 20, 40)]
    assert all(b < a / 3 for a, b in itertools.pairwise(errors)), errors
    assert errors[0] < 0.06 and errors[1] < 0.01 and errors[3] < 1e-4
    assert all(median(solver, n) < 0.5 * median(DPMpp(2), n) for n in (5, 10, 20))


@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow()], ids=lambda s: s.kind)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_no_budget_is_worse_than_the_mean_of_the_data(schedule, n):
    denoiser = three().denoiser(Gaussian(schedule))
    x1 = denoiser.process.prior(torch.empty(256, 2, dtype=torch.float64), Noise.of(3, 256))
    end = denoiser.flow(x1, 1.0, 0.0, steps=60)
    out = bd.sample(denoiser, x1, steps=n)
    assert float((out - end).square().mean()) <= 1.05 * float((end - end.mean(0)).square().mean())


def test_takes_exactly_the_evaluations_asked_for():
    for n in (1, 2, 3, 7):
        denoiser = GaussianData(Flow())
        bd.sample(denoiser, torch.randn(2, 1, dtype=torch.float64), steps=n)
        assert denoiser.calls == n


def test_scale_comes_from_the_data():
    exact = three().denoiser(Gaussian(VP()))
    std = three().draw(200_000).double().var(0).mean().sqrt()
    assert data_scale(exact) == pytest.approx(float(std), rel=0.01)
    assert data_scale(ClassifierFree(exact, 2.0)) == data_scale(exact)
    assert clock_scale(exact) == pytest.approx(SHARE * data_scale(exact) * 2**0.25)
    assert clock_scale(GaussianData(VP(), event_shape=(3, 4, 4))) == pytest.approx(SHARE * 0.5 * 48**0.25)
    assert default_solver(exact) == AdamsFlow(clock_scale(exact))
    assert default_grid(exact) == DataScaled(clock_scale(exact), LAST)
    assert data_scale(GaussianData(VP())) == 0.5


def test_stretching_the_data_stretches_the_samples():
    """One rule: data c times as large, with c times the noise, are the same problem."""
    c, base = 3.0, three()
    wide = Mixture(base.weights, c * base.means, c**2 * 0.02)
    small, large = base.denoiser(Gaussian(EDM())), wide.denoiser(Gaussian(EDM(0.002 * c, 80.0 * c)))
    x1 = 80 * torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(c * bd.sample(small, x1, steps=6), bd.sample(large, c * x1, steps=6), rtol=1e-6, atol=1e-8)


def test_last_interval_of_the_grid():
    schedule, scale = Flow(), 0.4
    alpha, sigma = schedule.alpha_sigma(DataScaled(scale, 0.5).times(schedule, 6))
    steps = (sigma / (sigma + scale * alpha)).diff()
    assert torch.allclose(steps[:-1], steps[0].expand(5)) and float(steps[-1] / steps[0]) == pytest.approx(0.5)


@pytest.mark.parametrize("make", [lambda: AdamsFlow(0.0), lambda: DataScaled(0.5, 0.0), lambda: ScaledFlow(-1.0)])
def test_scales_must_be_positive(make):
    with pytest.raises(bd.UserError):
        make()
