import itertools
import math
from functools import cache

import pytest
import torch
from cases import SCHEDULES, GaussianData, MixtureData, fitted_order, flow_reference, interior

from backdrift.errors import UserError
from backdrift.posterior import TensorPosterior
from backdrift.sample.gauge import DATA, FLOW, NOISE, TRIG
from backdrift.sample.grids import Angle, DataScaled, Karras
from backdrift.sample.ode import DPMpp, Euler, Heun
from backdrift.sample.sde import DDIM
from backdrift.schedule import EDM, VP, Cosine, Flow, Tabulated, Trig

GAUGES = {"noise": NOISE, "data": DATA, "flow": FLOW, "trig": TRIG}
SOLVERS = [
    DDIM(),
    *(Euler(gauge) for gauge in GAUGES.values()),
    *(Heun(gauge) for gauge in GAUGES.values()),
    *(DPMpp(order) for order in (1, 2, 3)),
]
MEAN, VARIANCE = 0.3, 0.25
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
some_schedules = pytest.mark.parametrize(
    "schedule", [VP(), Cosine(), EDM(), Flow(), Tabulated.linear()], ids=lambda s: s.kind
)


def marginal(schedule, t):
    alpha, sigma = (float(v) for v in schedule.alpha_sigma(t))
    return alpha * MEAN, alpha**2 * VARIANCE + sigma**2


def flow_map_error(plan):
    """Distance of the plan's affine map from the exact flow between the two marginals."""
    (mean_t, var_t), (mean_s, var_s) = marginal(plan.schedule, plan.start), marginal(plan.schedule, plan.times[-1])
    gain = math.sqrt(var_s / var_t)
    run = plan.affine(MEAN, VARIANCE)
    return abs(float(run.gain) - gain) + abs(float(run.offset) - (mean_s - gain * mean_t))


@every_solver
@some_schedules
def test_order_on_gaussian_data_between_finite_noise_levels(schedule, solver):
    counts = [24, 48, 96]
    errors = [flow_map_error(solver.plan(schedule, interior(schedule, n))) for n in counts]
    assert solver.order - 0.1 <= fitted_order(counts, errors) <= solver.order + 0.5, errors


@cache
def mixture_case(schedule):
    """A denoiser, nine start states, and where the probability-flow ODE takes them."""
    denoiser = MixtureData(schedule)
    t, s = (float(v) for v in interior(schedule, 1))
    alpha, sigma = schedule.alpha_sigma(t)
    x = (alpha**2 * 0.6 + sigma**2).sqrt() * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    return denoiser, x, flow_reference(denoiser, x, t, s)


@every_solver
@pytest.mark.parametrize("schedule", [VP(), Flow(), EDM()], ids=lambda s: s.kind)
def test_order_on_a_mixture(schedule, solver):
    denoiser, x, exact = mixture_case(schedule)
    counts = [40, 80, 160]
    errors = [(solver.run(denoiser, x, interior(schedule, n)) - exact).abs().mean() for n in counts]
    assert solver.order - 0.1 <= fitted_order(counts, errors) <= solver.order + 0.6, errors


@pytest.mark.parametrize("solver", [Euler(TRIG), Heun(TRIG), Euler(FLOW), Heun(FLOW)], ids=repr)
@pytest.mark.parametrize("schedule", [Cosine(), Trig(), Flow()], ids=lambda s: s.kind)
def test_gauges_that_are_finite_at_both_ends_keep_their_order_up_to_pure_noise(schedule, solver):
    # to a small noise level instead of 0, where the direction cannot be evaluated
    low = float(schedule.time(6.0))
    counts = [32, 64, 128]
    errors = [flow_map_error(solver.plan(schedule, Angle().times(schedule, n, 1.0, low))) for n in counts]
    assert solver.order - 0.1 <= fitted_order(counts, errors), errors


@some_schedules
@pytest.mark.parametrize("solver", [DDIM(), Euler(TRIG), Heun(), Heun(TRIG), DPMpp(1), DPMpp(2), DPMpp(3)], ids=repr)
def test_the_whole_range_converges_to_the_law_of_the_data(schedule, solver):
    mean, variance = marginal(schedule, 0.0)
    errors = []
    counts = [48, 96, 192]
    for n in counts:
        plan = solver.plan(schedule, DataScaled().times(schedule, n))
        got_mean, got_variance = plan.law(MEAN, VARIANCE, marginal(schedule, 1.0))
        errors.append(abs(got_mean - mean) + abs(got_variance - variance))
    assert fitted_order(counts, errors) > min(solver.order, 2) - 0.2, errors
    assert errors[-1] < (2e-2 if solver.order == 1 else 1e-3)


def test_the_first_order_methods_coincide():
    for schedule in SCHEDULES.values():
        times = interior(schedule, 7)
        ddim = DDIM().plan(schedule, times)
        for solver in (Euler(NOISE), Euler(DATA), Euler(FLOW), DPMpp(1)):
            plan = solver.plan(schedule, times)
            torch.testing.assert_close(plan.states, ddim.states, rtol=0, atol=1e-12)
            torch.testing.assert_close(plan.means, ddim.means, rtol=0, atol=1e-12)
        for solver in (Euler(FLOW), DPMpp(1)):
            plan, whole = (s.plan(schedule, DataScaled().times(schedule, 5)) for s in (solver, DDIM()))
            torch.testing.assert_close(plan.states, whole.states, rtol=0, atol=1e-12)
            torch.testing.assert_close(plan.means, whole.means, rtol=0, atol=1e-12)
        different = Euler(TRIG).plan(schedule, times).states - ddim.states
        assert different.abs().max() > 1e-3


@pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES.keys())
def test_a_gauge_is_what_its_table_says(gauge):
    # along a path of constant x_0 and eps, d(x / c)/dr = f dw/dr
    x0, eps, r, h = 0.7, -1.1, 0.8, 1e-5
    for scaling in (lambda r: 1.0, lambda r: 1 / (1 + r), lambda r: 1 / math.hypot(1, r)):

        def pair(r, scaling=scaling):
            return scaling(r), r * scaling(r)

        def scaled(r, pair=pair):
            alpha, sigma = pair(r)
            return (alpha * x0 + sigma * eps) / gauge.scale(alpha, sigma)

        a, b = gauge.row(*pair(r))
        rate = (gauge.clock(*pair(r + h)) - gauge.clock(*pair(r - h))) / (2 * h)
        assert (scaled(r + h) - scaled(r - h)) / (2 * h) == pytest.approx((a * x0 + b * eps) * rate, rel=1e-8)
        alpha, sigma = pair(r)
        p, q = gauge.direction(alpha, sigma)
        assert p * (alpha * x0 + sigma * eps) + q * x0 == pytest.approx(a * x0 + b * eps, rel=1e-12)


def karras_algorithm_1(denoise, x, sigmas):
    """Karras et al. 2022, Algorithm 1 with s = 1: `denoise(x, sigma)`, the last sigma may be 0."""
    for sigma, after in itertools.pairwise(sigmas):
        d = (x - denoise(x, sigma)) / sigma
        ahead = x + (after - sigma) * d
        if after != 0:
            d_ahead = (ahead - denoise(ahead, after)) / after
            ahead = x + (after - sigma) * (d + d_ahead) / 2
        x = ahead
    return x


@pytest.mark.parametrize("schedule", [EDM(), VP(), Flow()], ids=lambda s: s.kind)
def test_heun_in_the_noise_gauge_is_karras_algorithm_1(schedule):
    start = 1.0 if schedule == EDM() else 0.98
    times = Karras().times(schedule, 9, start=start)
    alpha, sigma = schedule.alpha_sigma(times)
    denoiser = MixtureData(schedule)

    def denoise(x, sigma):
        time = float(schedule.time(-2 * math.log(sigma)))
        return denoiser(x * schedule.alpha_sigma(time)[0], time).mean

    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None] * sigma[0] / alpha[0]
    expected = karras_algorithm_1(denoise, z, (sigma / alpha).tolist()) * alpha[-1]
    got = Heun(NOISE).run(denoiser, z * alpha[0], times)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * float(sigma[0] / alpha[0]))


@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow()], ids=lambda s: s.kind)
def test_dpmpp_2_is_the_published_2m(schedule):
    """Lu et al. 2022, arXiv:2211.01095, Algorithm 2, with the customary first-order step to sigma = 0."""
    times = interior(schedule, 6)
    if schedule != EDM():
        times = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    denoiser = MixtureData(schedule)
    start = x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    before = lam_before = None
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        D = denoiser(x, t).mean
        if sigma_s == 0:
            x = D
            break
        lam, lam_s = (alpha / sigma).log(), (alpha_s / sigma_s).log()
        h = lam_s - lam
        bar = D
        if before is not None:
            r = (lam - lam_before) / h
            bar = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * before
        x = sigma_s / sigma * x - alpha_s * torch.expm1(-h) * bar
        before, lam_before = D, lam
    torch.testing.assert_close(DPMpp(2).run(denoiser, start, times), x, rtol=0, atol=1e-11)


class Polynomial(GaussianData):
    """D is a given function of lambda alone, whatever the state."""

    def __init__(self, schedule, of):
        super().__init__(schedule)
        self.of = of

    def forward(self, xt, t, cond=None):
        return TensorPosterior(torch.full_like(xt, self.of(float(self.process.schedule.logsnr(t)) / 2)))


def test_dpmpp_3_integrates_a_quadratic_exactly_once_it_has_three_values():
    """x_s / sigma_s = x_t / sigma_t + int e^lambda D dlambda; the published 3M halves the curvature and fails this."""
    schedule, spans = VP(), [-1.0, -0.4, 0.1, 0.9]
    of, primitive = lambda u: 0.3 - u + 2 * u**2, lambda u: (0.3 - u + 2 * u**2 - (-1 + 4 * u) + 4) * math.exp(u)
    times = [float(schedule.time(2 * lam)) for lam in spans]
    seen = []
    denoiser, x = Polynomial(schedule, of), torch.zeros(1, 1, dtype=torch.float64)
    out = DPMpp(3).plan(schedule, times).run(denoiser, x, on_step=seen.append)
    (_, sigma), (_, sigma_s) = schedule.alpha_sigma(times[2]), schedule.alpha_sigma(times[3])
    expected = sigma_s * (seen[-1].state / sigma + primitive(spans[3]) - primitive(spans[2]))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_solvers_that_cannot_take_a_step_say_so():
    for solver in (Euler(NOISE), Heun(NOISE)):
        with pytest.raises(UserError, match="cannot take this step"):
            solver.plan(Flow(), [1.0, 0.5, 0.1])
    with pytest.raises(UserError, match="cannot take this step"):
        Euler(DATA).plan(Flow(), [0.9, 0.5, 0.0])
    with pytest.raises(UserError, match="order 1, 2 or 3, not 4"):
        DPMpp(4)
    for times, sentence in (([1.0], "at least one step"), ([0.5, 0.5], "falls"), ([1.2, 0.0], "lie in")):
        with pytest.raises(UserError, match=sentence):
            DDIM().plan(Flow(), times)
    assert DDIM().plan(Flow(), [1.0, 0.0]).means.tolist() == [[0.0], [1.0]]


def test_one_step_from_pure_noise_is_the_mean_for_every_solver():
    for schedule in (Flow(), Cosine(), Trig(), VP()):
        denoiser = MixtureData(schedule)
        x = torch.ones(1, 1, dtype=torch.float64)
        for solver in (DDIM(), Euler(), Heun(), DPMpp(1), DPMpp(2), DPMpp(3)):
            out = solver.run(denoiser, x, torch.tensor([1.0, 0.0], dtype=torch.float64))
            torch.testing.assert_close(out, denoiser(x, 1.0).mean, rtol=0, atol=1e-15)
