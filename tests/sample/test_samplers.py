"""Samplers with noise inside the step, and those that are not tables."""

import math

import pytest
import torch
from cases import GaussianData, MixtureData, flow_reference

from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.posterior import TensorPosterior
from backdrift.sample.adaptive import AdaptiveRK, GaussianStart
from backdrift.sample.ancestral import Bridge
from backdrift.sample.audit import conformance_lines, gaussian_error
from backdrift.sample.expsde import Churn
from backdrift.sample.gauge import NOISE
from backdrift.sample.grids import DataScaled, LogSNR, ShiftedUniform, Uniform
from backdrift.sample.langevin import AnnealedLangevin, EulerMaruyama, PredictorCorrector, ReverseDiffusion
from backdrift.sample.multistep import Multistep
from backdrift.sample.ode import Euler, Heun
from backdrift.sample.sde import DDIM, DDPM
from backdrift.schedule import EDM, VP, Cosine, Flow, Shifted


def test_churn_raises_the_noise_and_stays_below_t_1():
    schedule = EDM()
    times = DataScaled().times(schedule, 6)
    plan = Churn(Euler(NOISE), amount=3.0).plan(schedule, times)
    assert float(plan.times.max()) <= 1.0
    sigma = [float(schedule.alpha_sigma(t)[1]) for t in plan.times]
    levels = [float(schedule.alpha_sigma(t)[1]) for t in times]
    gamma = min(3.0 / 6, math.sqrt(2) - 1)
    assert sigma[0] == levels[0]  # capped: there is no level above t = 1
    assert sigma[1:-1] == pytest.approx([level * (1 + gamma) for level in levels[1:-1]], rel=1e-9)
    raised = [float(v) for v in plan.noise[1:-1].square().sum(1).sqrt()]
    assert raised == pytest.approx([level * math.sqrt((1 + gamma) ** 2 - 1) for level in levels[1:-1]], rel=1e-9)
    # without an amount it is the base
    for base in (Euler(), Heun()):
        still = Churn(base, amount=0.0).plan(schedule, times)
        assert torch.equal(still.means, base.plan(schedule, times).means)


def test_the_law_of_churn_is_that_of_the_data():
    schedule, span = VP(), (float(VP().time(-5.0)), float(VP().time(5.0)))
    errors = [gaussian_error(Churn(amount=5.0).plan(schedule, LogSNR().times(schedule, n, *span))) for n in (50, 100)]
    assert errors[1] < 1e-3 and 3.5 < errors[0] / errors[1] < 4.5


def test_annealed_langevin_reaches_the_stationary_law_of_its_steps():
    """x <- a x + b + sigma sqrt(h) xi has the variance sigma^2 h / (1 - a^2); then D is held on the way down."""
    schedule, h, mean, variance = EDM(), 0.2, 0.3, 0.25
    times = [float(schedule.time(-2 * math.log(sigma))) for sigma in (0.4, 0.1)]
    plan = AnnealedLangevin(h, inner=300).plan(schedule, times)
    k = variance / (variance + 0.4**2)
    a = 1 - h / 2 * (1 - k)
    down = 0.25 + 0.75 * k
    got_mean, got_variance = plan.law(mean, variance, (5.0, 9.0))
    assert float(got_mean) == pytest.approx(mean, abs=1e-3)
    assert float(got_variance) == pytest.approx(down**2 * 0.4**2 * h / (1 - a**2), rel=1e-3)
    # as printed, x stays as it is between levels
    printed = AnnealedLangevin(h, inner=2, published=True).plan(schedule, [*times, 0.0])
    assert float(printed.states[2, 2]) == pytest.approx(1 - h / 2) and printed.evaluations == 4


@pytest.mark.parametrize("solver", [EulerMaruyama(), ReverseDiffusion()], ids=repr)
def test_the_reverse_sde_is_first_order_in_law(solver):
    for schedule in (VP(), Flow(), EDM()):
        span = (float(schedule.time(-4.0)), float(schedule.time(4.0)))
        errors = [gaussian_error(solver.plan(schedule, LogSNR().times(schedule, n, *span))) for n in (200, 400)]
        assert 1.7 < errors[0] / errors[1] < 2.4


def test_euler_maruyama_is_the_formula_of_the_sde():
    """dx = (f x - g^2 score) dt + g dw with VP's f = -beta / 2 and g^2 = beta."""
    t, s = 0.5, 0.45
    beta = 0.1 + t * 19.9
    alpha, sigma = (float(v) for v in VP().alpha_sigma(t))
    plan = EulerMaruyama().plan(VP(), [t, s])
    step = t - s
    assert float(plan.states[1, 1]) == pytest.approx(1 + beta / 2 * step - beta * step / sigma**2, rel=1e-10)
    assert float(plan.means[1, 0]) == pytest.approx(beta * step * alpha / sigma**2, rel=1e-10)
    assert float(plan.noise[1, 0]) == pytest.approx(math.sqrt(beta * step), rel=1e-10)


def test_the_predictor_corrector_steps_sample_by_sample():
    denoiser = GaussianData(VP(), event_shape=(6,))
    sampler, intervals = PredictorCorrector().budget(9, VP(), 1.0)
    times = DataScaled().times(VP(), intervals)
    like = torch.zeros(5, 6, dtype=torch.float64)
    noise = Noise.of(3, 5)
    x1 = noise.at("prior").normal(like)
    whole = sampler.run(denoiser, x1, times, None, noise)
    assert denoiser.calls == 9
    for i in range(5):
        alone = sampler.run(denoiser, x1[[i]], times, None, Noise(3, torch.tensor([i])))
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-12)
    other = torch.cat([x1[:1], 100 * x1[1:]])
    torch.testing.assert_close(sampler.run(denoiser, other, times, None, noise)[0], whole[0], rtol=0, atol=1e-12)


def test_corrections_bring_the_law_closer():
    """At equal predictors, Langevin steps at each level mend the predictor's missing variance."""
    denoiser, count = GaussianData(VP(), 0.0, 0.25, (8,)), 4000
    times = DataScaled().times(VP(), 8)
    noise = Noise.of(0, count)
    x1 = noise.at("prior").normal(torch.zeros(count, 8, dtype=torch.float64))
    plain, mended = (
        PredictorCorrector(DDIM(1.0), corrections=n).run(denoiser, x1, times, None, noise).std() for n in (0, 7)
    )
    assert abs(float(mended) - 0.5) < 0.9 * abs(float(plain) - 0.5)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Flow(), EDM()], ids=repr)
def test_adaptive_steps_meet_their_tolerance(schedule):
    line = conformance_lines(schedule)["two"]
    x, exact = line.ends(24)
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5):
        seen = []
        out = AdaptiveRK(rtol=tolerance, atol=tolerance, floor=1e-4).run(
            line.denoiser, x, torch.tensor([1.0, 0.0]), None, None, seen.append
        )
        errors.append(float((out - exact).square().mean().sqrt()))
        calls.append(len(seen))
    assert errors[0] < 2e-2 and errors[1] < 3e-4
    assert calls[0] < calls[1] < 1500


def test_adaptive_steps_do_not_depend_on_the_batch_and_follow_conditions():
    line = conformance_lines(VP())["two"]

    class Labelled(GaussianData):
        def forward(self, xt, t, cond=None):
            return TensorPosterior(line.denoiser(xt, t).mean + 0.1 * cond["label"][:, None].to(xt))

    denoiser = Labelled(VP())
    x, label = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], torch.arange(5)
    times = torch.tensor([1.0, 0.0])
    whole = AdaptiveRK().run(denoiser, x, times, {"label": label})
    for i in range(5):
        alone = AdaptiveRK().run(denoiser, x[[i]], times, {"label": label[[i]]})
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-10)


def test_adaptive_steps_end_where_they_are_told():
    denoiser, t, s = conformance_lines(VP())["two"].denoiser, 0.9, 0.3
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    out = AdaptiveRK(1e-7, 1e-7).run(denoiser, x, torch.tensor([t, s]))
    torch.testing.assert_close(out, flow_reference(denoiser, x, t, s), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="more than 3 tries"):
        AdaptiveRK(1e-9, 1e-9, most=3).run(denoiser, x, torch.tensor([t, s]))


def test_the_gaussian_start_is_exact_on_gaussian_data():
    """With a full covariance, against the plan that starts at t = 1 on a fine grid."""
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    variance, mean = torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64), torch.tensor([0.2, -0.1, 0.4]).double()
    start = GaussianStart(mean, variance, basis)
    schedule = VP()
    at, to = schedule.alpha_sigma(1.0), schedule.alpha_sigma(0.4)
    x = torch.randn(4, 3, dtype=torch.float64)
    got = (start.jump(x, at, to) - to[0] * mean) @ basis
    z = (x - at[0] * mean) @ basis
    gain = ((to[0] ** 2 * variance + to[1] ** 2) / (at[0] ** 2 * variance + at[1] ** 2)).sqrt()
    torch.testing.assert_close(got, z * gain)
    # and in a run: the evaluations asked for, at a smaller error than without
    denoiser = GaussianData(schedule, 0.3, 0.25)
    jump = GaussianStart(torch.tensor(0.3), torch.tensor(0.25), solver=Multistep())
    errors = []
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for sampler in (Multistep(), jump):
        denoiser.calls = 0
        solver, intervals = sampler.budget(6, schedule, 1.0)
        out = solver.run(denoiser, x, DataScaled().times(schedule, intervals))
        assert denoiser.calls == 6
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(1.0))
        exact = 0.3 + 0.5 / math.sqrt(alpha**2 * 0.25 + sigma**2) * (x - alpha * 0.3)
        errors.append(float((out - exact).abs().max()))
    assert errors[1] < errors[0]


def test_ddpm_with_a_learned_variance_is_the_bridge():
    """`Bridge` with a fraction from the denoiser has DDPM's steps of that fraction, given the same noise."""

    class Learned(GaussianData):
        def forward(self, xt, t, cond=None):
            return TensorPosterior(super().forward(xt, t).mean, torch.full_like(xt, 0.3))

    denoiser, times = Learned(VP()), Uniform().times(VP(), 5)
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    noise = Noise.of(2, 7)
    out = Bridge().run(denoiser, x, times, None, noise)
    draws = [noise.at("bridge", n).normal(x) for n in range(5)]
    torch.testing.assert_close(DDPM(0.3).plan(VP(), times).run(denoiser, x, None, draws), out, rtol=0, atol=1e-12)


def test_the_shifted_grid_is_uniform_on_the_shifted_schedule():
    for n, start, end in ((7, 1.0, 0.0), (5, 0.8, 0.2)):
        times = ShiftedUniform(3.0).times(Flow(), n, start, end)
        inner = Shifted(Flow(), 3.0)
        u = times / (3.0 - 2.0 * times)
        torch.testing.assert_close(u.diff(), u.diff().mean().expand(n), rtol=1e-12, atol=0)
        for a, b in zip(inner.alpha_sigma(u), Flow().alpha_sigma(times), strict=True):
            torch.testing.assert_close(a, b)
    with pytest.raises(UserError, match="shift > 0"):
        ShiftedUniform(0.0)


def test_refusals():
    for wrong in (
        lambda: Churn(amount=-1.0),
        lambda: Churn(DDIM()),
        lambda: AnnealedLangevin(size=4.0),
        lambda: PredictorCorrector(snr=0.0),
        lambda: AdaptiveRK(atol=0.0),
    ):
        with pytest.raises(UserError):
            wrong()
    with pytest.raises(UserError, match="give it a Noise"):
        PredictorCorrector().run(MixtureData(VP()), torch.zeros(1, 1), torch.tensor([1.0, 0.0]))
    with pytest.raises(UserError, match="at least two intervals"):
        GaussianStart(torch.tensor(0.0), torch.tensor(1.0)).run(MixtureData(VP()), torch.zeros(1, 1), [1.0, 0.0])
