import itertools
import math

import pytest
import torch

from backdrift.config import from_config, kinds, to_config
from backdrift.errors import UserError
from backdrift.schedule import EDM, VE, VP, Cosine, Flow, Shifted, Tabulated, Trig
from backdrift.target import EDM_F, EPS, SCORE, VELOCITY, X0, V
from test_schedule import INSIDE, SCHEDULES

TARGETS = [X0(), EPS(), V(), VELOCITY(), SCORE(), EDM_F(), EDM_F(0.27)]
PAIRS = list(itertools.product(SCHEDULES.values(), TARGETS))
NAMES = [f"{name}-{target!r}" for name, target in itertools.product(SCHEDULES, TARGETS)]
every = pytest.mark.parametrize(("schedule", "target"), PAIRS, ids=NAMES)


def draws():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(41, dtype=torch.float64, generator=generator) for _ in range(2))


@every
def test_x0_survives_the_round_trip(schedule, target):
    x0, eps = draws()
    alpha, sigma = schedule.alpha_sigma(INSIDE)
    xt = alpha * x0 + sigma * eps
    a, b = target.row(schedule, INSIDE)
    skip, out = target.skip_out(schedule, INSIDE)
    back = skip * xt + out * (a * x0 + b * eps)
    # the error that rounding x_t alone makes unavoidable is eps |skip x_t|
    assert bool(((back - x0).abs() <= 1e-12 * (1 + (skip * xt).abs() / 100)).all())


@every
def test_skip_and_out_solve_the_two_equations(schedule, target):
    """x_0 = skip (alpha x_0 + sigma eps) + out (a x_0 + b eps) for all x_0 and eps: a 2 x 2 linear system."""
    (alpha, sigma), (a, b) = schedule.alpha_sigma(INSIDE), target.row(schedule, INSIDE)
    system = torch.stack([torch.stack([alpha, a], -1), torch.stack([sigma, b], -1)], -2)
    solution = torch.linalg.solve(system, torch.tensor([1.0, 0.0]).double().expand(41, 2))
    skip, out = target.skip_out(schedule, INSIDE)
    torch.testing.assert_close(torch.stack([skip, out], -1), solution, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(target.weight(schedule, INSIDE), solution[:, 1] ** -2, rtol=1e-9, atol=0)


@every
def test_scalings_are_finite_and_right_at_both_ends(schedule, target):
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0.0, 1.0]))
    if alpha[1] == 0 and target.needs_alpha:
        with pytest.raises(UserError, match="alpha = 0"):
            target.check(schedule)
        return
    target.check(schedule)
    skip, out = target.skip_out(schedule, torch.tensor([0.0, 1.0]))
    assert bool(skip.isfinite().all() & out.isfinite().all())
    if sigma[0] == 0 and not isinstance(target, X0):
        assert out[0] == 0 and skip[0] == pytest.approx(1 / alpha[0].item())
    # at t = 1 the two equations hold exactly: x_0 comes back and eps cancels
    a, b = target.row(schedule, 1.0)
    assert skip[1] * alpha[1] + out[1] * a == pytest.approx(1.0, abs=1e-12)
    assert skip[1] * sigma[1] + out[1] * b == pytest.approx(0.0, abs=1e-12)


def test_which_pairs_are_refused():
    ends_in_noise = (Cosine(), Flow(), Trig(), Shifted(Flow(), 0.1), Shifted(Cosine(), 3.0), Tabulated((0.5, 0.0)))
    for schedule, target in itertools.product(ends_in_noise, (EPS(), SCORE())):
        with pytest.raises(UserError):
            target.check(schedule)
    for schedule, target in itertools.product((VP(), VE(), EDM(), Tabulated.linear(), Shifted(VP(), 0.1)), TARGETS):
        target.check(schedule)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("schedule", [VE(), EDM()])
def test_edm_f_is_karras_on_variance_exploding_schedules(schedule, sigma_data):
    _, sigma = schedule.alpha_sigma(INSIDE)
    skip, out = EDM_F(sigma_data).skip_out(schedule, INSIDE)
    torch.testing.assert_close(skip, sigma_data**2 / (sigma**2 + sigma_data**2), rtol=1e-13, atol=0)
    torch.testing.assert_close(out, sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_edm_f_has_unit_variance_at_every_level(schedule):
    for sigma_data in (0.27, 0.5):
        a, b = EDM_F(sigma_data).row(schedule, INSIDE)
        torch.testing.assert_close((a * sigma_data) ** 2 + b**2, torch.ones_like(a), rtol=1e-13, atol=0)


def test_rows_are_what_the_papers_predict():
    x0, eps = draws()
    alpha, sigma = Trig().alpha_sigma(INSIDE)
    xt = alpha * x0 + sigma * eps

    def p(target, schedule=Trig()):  # noqa: B008
        a, b = target.row(schedule, INSIDE)
        return a * x0 + b * eps

    assert torch.equal(p(X0()), x0) and torch.equal(p(EPS()), eps)
    torch.testing.assert_close(p(V()), alpha * eps - sigma * x0)
    # on the circle the velocity of the path is v, at pi/2 a unit of time
    torch.testing.assert_close(p(VELOCITY()), math.pi / 2 * p(V()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p(VELOCITY(), Flow()), eps - x0)
    torch.testing.assert_close(p(SCORE()) / sigma, -(xt - alpha * x0) / sigma**2, rtol=1e-10, atol=1e-12)


def test_every_registered_target_is_tested_here():
    assert set(kinds("target").values()) == {type(target) for target in TARGETS}
    for target in TARGETS:
        assert from_config(to_config(target)) == target
