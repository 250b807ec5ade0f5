"""The gauge family: exact integrals, equal tables, warm-up, corrector and guard."""

import math

import numpy as np
import pytest
import torch

from backdrift.errors import UserError
from backdrift.sample.exponential import DPMpp2S, DPMSolver, ExponentialRK, split
from backdrift.sample.expsde import SDE2M, PublishedSDE3M
from backdrift.sample.fixed import ADAMS, IPNDM
from backdrift.sample.gauge import DATA, FLOW, NOISE, TRIG, ExtendedGauge, StochasticGauge
from backdrift.sample.grids import Angle, DataScaled, LogSNR
from backdrift.sample.multistep import LMS, ExactDPMpp, Multistep, SASolver
from backdrift.sample.ode import DPMpp
from backdrift.sample.rule import Rule
from backdrift.sample.sde import DDIM
from backdrift.sample.trace import Linear
from backdrift.sample.unipc import BH1, BH2, PublishedUniPC, UniPC
from backdrift.sample.variable import CLOCK, LOG, RATIO, TIME
from backdrift.schedule import EDM, VP, Cosine, Flow

GAUGES = {
    "noise": NOISE,
    "data": DATA,
    "flow": FLOW,
    "trig": TRIG,
    "stochastic": StochasticGauge(0.8),
    "extended": ExtendedGauge(),
}
VARIABLES = {"clock": CLOCK, "log": LOG, "ratio": RATIO, "time": TIME}
every_gauge = pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES.keys())
every_variable = pytest.mark.parametrize("variable", VARIABLES.values(), ids=VARIABLES.keys())


def inner(schedule, n, low=-5.0, high=5.0):
    return LogSNR().times(schedule, n, float(schedule.time(low)), float(schedule.time(high)))


def same_tables(a, b, atol=1e-11):
    for name in ("times", "states", "means", "noise"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=atol)


def same_maps(a, b, atol=1e-11):
    """The same outputs on Gaussian data, however the rows are written."""
    for mean, variance in ((0.3, 0.2), (-1.0, 1.5)):
        x, y = a.affine(mean, variance), b.affine(mean, variance)
        for one, other in zip((x.gain, x.offset, x.noise), (y.gain, y.offset, y.noise), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=atol)


@every_gauge
@every_variable
def test_the_weights_integrate_polynomials_against_the_clock(gauge, variable):
    """int u^k dw = [u^k w] - int w d(u^k): a second quadrature, by parts and by brute force."""
    schedule = VP()
    rule = Rule(gauge, variable, schedule)
    at, to = rule.place(0.7), rule.place(0.3)
    nodes = [rule.place(t).u for t in (0.7, 0.8, 0.95)]
    weights = rule.weights(nodes, at, to)
    assert sum(weights) == pytest.approx(to.w - at.w, rel=1e-12)
    fine = np.linspace(0.7, 0.3, 20_001)
    places = [(rule.place(t).u, rule.place(t).w) for t in fine[::10]]
    u, w = (np.array(column) for column in zip(*places, strict=True))
    for k in (1, 2):
        middle = ((u[1:] ** k + u[:-1] ** k) / 2 * np.diff(w)).sum()
        assert np.dot(weights, np.array(nodes) ** k) == pytest.approx(middle, rel=2e-5)


def test_closed_forms_of_the_weights():
    schedule = EDM()
    rule = Rule(NOISE, LOG, schedule)
    at, to = rule.place(0.6), rule.place(0.5)
    u0, u1 = at.u, rule.place(0.75).u
    # int (u - u0) e^u du = (u - u0 - 1) e^u
    slope = (to.u - u0 - 1) * math.exp(to.u) + math.exp(u0)
    expected = [to.w - at.w - slope / (u1 - u0), slope / (u1 - u0)]
    assert rule.weights([u0, u1], at, to) == pytest.approx(expected, rel=1e-12)
    # to sigma = 0 the integral runs to u = -infinity
    flow = Rule(NOISE, LOG, Flow())
    at, to = flow.place(0.5), flow.place(0.0)
    u0, u1 = at.u, flow.place(0.7).u
    slope = math.exp(u0)
    expected = [-at.w - slope / (u1 - u0), slope / (u1 - u0)]
    assert flow.weights([u0, u1], at, to) == pytest.approx(expected, rel=1e-12)


@every_gauge
def test_a_gauge_knows_its_rate_and_its_inverse(gauge):
    for v in (-2.0, 0.3, 1.5):
        pair = lambda v: (1.0, math.exp(v))  # noqa: E731
        h = 1e-5
        rate = (gauge.clock(*pair(v + h)) - gauge.clock(*pair(v - h))) / (2 * h)
        assert gauge.rate(np.array([v]))[0] == pytest.approx(rate, rel=1e-7)
        assert gauge.ratio(gauge.clock(*pair(v))) == pytest.approx(math.exp(v), rel=1e-9)


def test_solvers_that_are_one_table():
    for schedule in (VP(), Flow(), EDM()):
        times = inner(schedule, 8)
        for gauge in (NOISE, DATA, FLOW, TRIG):
            same_tables(Multistep(gauge, LOG, 1).plan(schedule, times), DDIM().plan(schedule, times))
        same_tables(Multistep(StochasticGauge(1.0), LOG, 1).plan(schedule, times), DDIM(1.0).plan(schedule, times))
        same_tables(DPMSolver(1).plan(schedule, times), DDIM().plan(schedule, times))
        same_maps(IPNDM(1).plan(schedule, times), DDIM().plan(schedule, times))
        # a stochastic gauge without noise is the data gauge
        plain = Multistep(DATA, LOG, 3, warmup=False).plan(schedule, times)
        almost = Multistep(StochasticGauge(1e-6), LOG, 3).plan(schedule, times)
        torch.testing.assert_close(plain.means, almost.means, rtol=0, atol=1e-9)


def test_equal_steps_in_the_clock_give_adams_coefficients():
    schedule = EDM()
    sigmas = torch.linspace(2.0, 0.2, 10, dtype=torch.float64)
    times = schedule.time(-2 * sigmas.log())
    for order in (2, 3, 4):
        lms = Multistep(NOISE, CLOCK, order, warmup=False).plan(schedule, times)
        same_maps(lms, IPNDM(order).plan(schedule, times))
    assert all(sum(row) == pytest.approx(1) for row in ADAMS)


def test_unipc_is_the_exact_integral_wherever_the_paper_solves_for_its_weights():
    """B(h) cancels there; it stays where 1/2 is put in the place of a solution."""
    schedule = VP()
    times = inner(schedule, 4).tolist()
    rule = Rule(DATA, LOG, schedule)
    places = [rule.place(t) for t in times]
    lam = [-place.u for place in places]
    x, *D = (Linear({("D", n): 1.0}) for n in range(6))
    at, to = places[2], places[3]
    known = [(lam[n], D[n]) for n in (2, 1, 0)]
    values = [(places[n].u, D[n]) for n in (2, 1, 0)]
    ahead = (lam[3], D[3])

    def gap(published, exact):
        difference = published - exact.of(x)
        return max(abs(value) for value in difference.terms.values())

    for scale in (BH1, BH2):

        def step(count, end, scale=scale):
            return PublishedUniPC(3, scale)._step(x, known[:count], end, at.pair, to.pair, lam[3] - lam[2])

        assert gap(step(3, None), rule.step(values, at, to)) < 1e-12
        for count in (2, 3):
            assert gap(step(count, ahead), rule.step([(to.u, D[3]), *values[:count]], at, to)) < 1e-12
        assert gap(step(2, None), rule.step(values[:2], at, to)) > 1e-3
        assert gap(step(1, ahead), rule.step([(to.u, D[3]), values[0]], at, to)) > 1e-3
    assert UniPC(3).convergence == 4


def test_res_2s_and_2s_differ_from_each_other_only_in_their_weights():
    """Order 2 with b_2 = 2 phi_2, b_1 = phi_1 - b_2, phi_1 = (1 - e^-h) / h, phi_2 = (1 - phi_1) / h."""
    schedule = EDM()
    times = [0.6, 0.5]
    sigma, sigma_s = (float(schedule.alpha_sigma(t)[1]) for t in times)
    h = math.log(sigma / sigma_s)
    phi_1 = -math.expm1(-h) / h
    phi_2 = (1 - phi_1) / h
    plan = ExponentialRK(2).plan(schedule, times)
    assert plan.means[2].tolist() == pytest.approx([h * (phi_1 - 2 * phi_2), h * 2 * phi_2], rel=1e-10)
    published = DPMpp2S().plan(schedule, times)
    assert published.means[2].tolist() == pytest.approx([0, h * phi_1], abs=1e-12)
    torch.testing.assert_close(plan.means[1], published.means[1])


def test_sde_forms():
    """SA-Solver's predictor of order 2 has 2M SDE's weights with 1 - (1 - e^-H) / H in place of (1 - e^-H) / 2."""
    schedule = VP()
    times = inner(schedule, 3)
    lam = [float(schedule.logsnr(t)) / 2 for t in times]
    alpha = float(schedule.alpha_sigma(times[2])[0])
    H, r = 2 * (lam[2] - lam[1]), (lam[1] - lam[0]) / (lam[2] - lam[1])
    share = -math.expm1(-H)
    exact, midpoint = SASolver(2, False).plan(schedule, times), SDE2M().plan(schedule, times)
    assert float(midpoint.means[2, 0]) == pytest.approx(-alpha * share / (2 * r), rel=1e-10)
    assert float(exact.means[2, 0]) == pytest.approx(-alpha * (1 - share / H) / r, rel=1e-10)
    torch.testing.assert_close(exact.noise, midpoint.noise)
    # the printed 3M lacks phi_3 times the second difference, phi_3 = (1 - (1 - e^-H) / H) / H - 1 / 2
    for full, half, H in (
        (SASolver(3, False), PublishedSDE3M(), 2 * (lam[3] - lam[2])),
        (Multistep(DATA, LOG, 3, warmup=False), DPMpp(3, published=True), lam[3] - lam[2]),
    ):
        full, half = (solver.plan(schedule, times) for solver in (full, half))
        h = lam[3] - lam[2]
        r0, r1 = (lam[2] - lam[1]) / h, (lam[1] - lam[0]) / h
        phi_3 = (1 + math.expm1(-H) / H) / H - 0.5
        alpha = float(schedule.alpha_sigma(times[3])[0])
        lacking = float(full.means[3, 0] - half.means[3, 0])
        assert lacking == pytest.approx(-alpha * phi_3 / (r1 * (r0 + r1)), rel=1e-9)


def test_a_warm_up_keeps_the_order_that_the_start_alone_would_lose():
    from backdrift.sample.audit import measured_order

    for solver, cold in ((ExactDPMpp(4), 2.3), (Multistep(TRIG, CLOCK, 4), 2.3), (LMS(4), 3.5)):
        warm = Multistep(solver.gauge, solver.variable, 4, warmup=False)
        assert measured_order(solver, VP(), (96, 192)) > 3.8
        assert measured_order(warm, VP(), (96, 192)) < cold


def test_rows_stay_short_whatever_the_number_of_steps():
    """A corrected state is written from where the predictor led, not from the whole past."""
    for solver in (UniPC(3), SASolver(3), Multistep(TRIG, CLOCK, 3, True)):
        plan = solver.plan(VP(), inner(VP(), 40))
        assert int((plan.states != 0).sum(1).max() + (plan.means != 0).sum(1).max()) <= 10


def test_the_guard_stops_what_extrapolation_invents():
    from backdrift.sample.audit import conformance_lines

    line = conformance_lines(EDM())["two"]
    x, exact = line.ends(64)
    solver = Multistep(DATA, CLOCK, 4)
    guarded, intervals = solver.budget(5, EDM(), 1.0)
    times = DataScaled().times(EDM(), intervals)
    errors = [
        float((s.run(line.denoiser, x, times) - exact).square().mean().sqrt())
        for s in (Multistep(DATA, CLOCK, 4, warmup=False), guarded)
    ]
    assert errors[0] > 1e3
    assert errors[1] < 0.5 * line.std
    # on fine grids it changes nothing
    fine = inner(VP(), 60)
    same_tables(
        Multistep(FLOW, CLOCK, 3, guarded=True).plan(VP(), fine), Multistep(FLOW, CLOCK, 3).plan(VP(), fine), 0.0
    )


def test_infinite_clocks_hold_d_constant():
    for schedule in (Cosine(), Flow()):
        times = Angle().times(schedule, 5)
        for gauge in (NOISE, DATA):
            plan = Multistep(gauge, LOG, 3).plan(schedule, times)
            first = DDIM().plan(schedule, times)
            torch.testing.assert_close(plan.means[1], first.means[1])
        plan = Multistep(DATA, LOG, 3).plan(schedule, times)
        assert plan.means[-1, -1] == 1 and plan.means[-1, :-1].abs().max() == 0


def test_budgets_are_split_into_steps_that_keep_the_order():
    assert [split(n, 3) for n in range(1, 9)] == [(1,), (2,), (3,), (2, 2), (3, 2), (3, 3), (3, 2, 2), (3, 3, 2)]
    assert [split(n, 2) for n in range(1, 5)] == [(1,), (2,), (2, 1), (2, 2)]
    assert split(3, 1) == (1, 1, 1)


def test_refusals():
    for wrong in (lambda: Multistep(order=5), lambda: UniPC(4), lambda: IPNDM(0), lambda: StochasticGauge(0.0)):
        with pytest.raises(UserError):
            wrong()
    with pytest.raises(UserError, match="stages for 2 steps"):
        DPMSolver(2, stages=(1,)).plan(VP(), [0.9, 0.5, 0.1])
