import json
import math

import numpy as np
import pytest
import torch

from backdrift.config import from_config, kinds, to_config
from backdrift.errors import UserError
from backdrift.schedule import EDM, VE, VP, Cosine, Flow, Learned, Shifted, Tabulated, Trig, as_time

ZERO_ENDED = (0.9, 0.5, 0.1, 0.0)
KNOTS = (0.0, 0.1, 0.3, 0.7, 1.0), (0.0, 0.004, 0.5, 0.62, 1.0)
SCHEDULES = {
    "VP": VP(),
    "VP constant rate": VP(3.0, 3.0),
    "Cosine": Cosine(),
    "Cosine s=0.1": Cosine(0.1),
    "VE": VE(),
    "EDM": EDM(),
    "Flow": Flow(),
    "Trig": Trig(),
    "Shifted up": Shifted(Flow(), 3.0),
    "Shifted down": Shifted(Flow(), 0.1),
    "Shifted Cosine": Shifted(Cosine(), 1.7),
    "Tabulated": Tabulated.linear(),
    "Tabulated to zero": Tabulated(ZERO_ENDED),
    "Learned": Learned(VP(), *KNOTS),
    "Learned Cosine": Learned(Cosine(), *KNOTS),
}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
# off the knots of both tables
INSIDE = torch.linspace(0.01531, 0.98472, 41, dtype=torch.float64)
PURE_NOISE = [Cosine(), Cosine(0.1), Flow(), Trig(), Shifted(Trig(), 0.3), Shifted(Flow(), 0.1), Tabulated(ZERO_ENDED)]
PURE_NOISE += [Learned(Flow(), *KNOTS), Learned(Trig(), *KNOTS)]


@every
def test_rates_are_the_derivatives_of_alpha_and_sigma(schedule):
    h = 1e-6
    above, below = schedule.alpha_sigma(INSIDE + h), schedule.alpha_sigma(INSIDE - h)
    for rate, high, low in zip(schedule.rates(INSIDE), above, below, strict=True):
        torch.testing.assert_close(rate, (high - low) / (2 * h), rtol=1e-6, atol=1e-7)


@every
def test_rates_agree_with_autograd(schedule):
    t = INSIDE.clone().requires_grad_()
    alpha, sigma = schedule.alpha_sigma(t)
    for rate, value in zip(schedule.rates(INSIDE), (alpha, sigma), strict=True):
        grad = (
            torch.autograd.grad(value.sum(), t, retain_graph=True)[0]
            if value.requires_grad
            else torch.zeros_like(INSIDE)
        )
        torch.testing.assert_close(rate, grad, rtol=1e-9, atol=1e-11)


@every
def test_time_inverts_logsnr_and_angle_with_both_ends(schedule):
    t = torch.cat([torch.tensor([0.0]).double(), INSIDE, torch.tensor([1.0]).double()])
    torch.testing.assert_close(schedule.time(schedule.logsnr(t)), t, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.time_at_angle(schedule.angle(t)), t, rtol=0, atol=1e-12)
    assert schedule.time(float(schedule.logsnr(1.0))) == pytest.approx(1.0, abs=1e-12)


@every
def test_clocks_are_what_they_say(schedule):
    alpha, sigma = schedule.alpha_sigma(INSIDE)
    w = schedule.angle(INSIDE)
    torch.testing.assert_close(schedule.logsnr(INSIDE), (alpha**2 / sigma**2).log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(w.tan(), sigma / alpha, rtol=1e-12, atol=0)
    assert bool((w.diff() > 0).all() & (w > 0).all() & (w < math.pi / 2).all())


@every
def test_results_are_float64_of_the_shape_of_t(schedule):
    for t, shape in ((0.3, ()), (INSIDE.float(), INSIDE.shape), (torch.full((2, 3), 0.3), (2, 3))):
        calls = [*schedule.alpha_sigma(t), *schedule.rates(t), schedule.angle(t), schedule.logsnr(t), schedule.time(t)]
        assert all(value.dtype == torch.float64 and value.shape == shape for value in calls)
    assert as_time(0.1).item() == 0.1


@every
def test_a_config_brings_the_same_schedule_back(schedule):
    again = from_config(json.loads(json.dumps(to_config(schedule))))
    assert again == schedule
    torch.testing.assert_close(again.alpha_sigma(INSIDE), schedule.alpha_sigma(INSIDE), rtol=0, atol=0)


def test_every_registered_schedule_is_tested_here():
    assert set(kinds("schedule").values()) == {type(schedule) for schedule in SCHEDULES.values()}


@every
def test_data_at_the_start(schedule):
    alpha, sigma = schedule.alpha_sigma(0.0)
    assert alpha == pytest.approx(1.0, abs=1e-15)
    least = {VE: 0.01, EDM: 0.002}.get(type(schedule), 0.0)
    assert sigma == pytest.approx(least, rel=1e-12, abs=0)


@pytest.mark.parametrize("schedule", PURE_NOISE, ids=str)
def test_pure_noise_at_the_end_is_exact(schedule):
    alpha, sigma = schedule.alpha_sigma(1.0)
    assert alpha == 0 and sigma == 1
    assert schedule.logsnr(1.0) == -math.inf and schedule.time(-math.inf) == 1
    assert schedule.time(math.inf) == pytest.approx(0.0, abs=1e-14)
    assert schedule.angle(1.0) == math.pi / 2


def test_every_shift_ends_in_pure_noise_exactly():
    for n in range(1, 500):
        alpha, sigma = Shifted(Flow(), n / 137).alpha_sigma(1.0)
        assert alpha == 0 and sigma == 1


@pytest.mark.parametrize(
    "schedule", [VP(), Cosine(), Trig(), Tabulated.linear(), Shifted(VP(), 2.0)], ids=lambda s: s.kind
)
def test_variance_is_preserved(schedule):
    t = torch.cat([INSIDE, 10.0 ** -torch.arange(1, 13).double()])
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-14)
    # sigma keeps its relative accuracy where 1 - alpha^2 has none left; autograd of alpha^2 is the slope at 0
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(schedule.alpha_sigma(zero)[0], zero)[0]
    if slope != 0:
        assert schedule.alpha_sigma(1e-14)[1] ** 2 == pytest.approx(-2 * slope.item() * 1e-14, rel=1e-10)


def test_ddpm_table_against_numpy():
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    table = Tabulated.linear()
    assert bar[999] == pytest.approx(4.0358e-5, rel=1e-4)
    for k in (0, 1, 499, 998, 999):
        alpha, sigma = table.alpha_sigma(table.time_of_step(k))
        assert alpha**2 == pytest.approx(bar[k], rel=1e-10)
        assert sigma**2 == pytest.approx(1 - bar[k], rel=1e-10)
    # halfway between two entries the angle is their mean
    low, high = (math.acos(math.sqrt(bar[k])) for k in (399, 400))
    assert table.angle(400.5 / 1000) == pytest.approx((low + high) / 2, rel=1e-12)


def test_vp_is_the_limit_of_the_ddpm_table():
    t = np.array([0.25, 0.5, 1.0])
    steps = 200_000
    bar = np.cumprod(1 - np.linspace(0.1, 20, steps) / steps)
    expected = bar[(t * steps).astype(int) - 1]
    np.testing.assert_allclose(VP().alpha_sigma(torch.tensor(t))[0].numpy() ** 2, expected, rtol=2e-3)
    assert VP().alpha_sigma(1.0)[0] == pytest.approx(math.exp(-5.025), rel=1e-12)


def test_published_values():
    # Nichol and Dhariwal's f(t)/f(0)
    f = [math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0.0, 0.5)]
    assert Cosine().alpha_sigma(0.5)[0] ** 2 == pytest.approx(f[1] / f[0], rel=1e-12)
    # Karras et al.'s 18 noise levels, counted from the noisiest
    levels = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    sigma = EDM().alpha_sigma(1 - torch.arange(18).double() / 17)[1]
    np.testing.assert_allclose(sigma.numpy(), levels, rtol=1e-10)
    assert VE().alpha_sigma(0.5)[1] == pytest.approx(math.sqrt(0.01 * 50), rel=1e-12)
    assert Flow().alpha_sigma(0.25)[0] == 0.75 and Flow().alpha_sigma(0.25)[1] == 0.25
    assert Trig().alpha_sigma(1 / 3)[0] == pytest.approx(math.sqrt(3) / 2, rel=1e-14)


def test_shifting_a_flow_multiplies_the_noise_to_signal_ratio():
    for shift in (0.3, 3.0):
        (a, s), (b, r) = Flow().alpha_sigma(INSIDE), Shifted(Flow(), shift).alpha_sigma(INSIDE)
        torch.testing.assert_close(r / b, shift * s / a, rtol=1e-12, atol=0)


def test_a_learned_schedule_is_its_base_at_the_pace_of_the_table():
    schedule, t = Learned(Cosine(), *KNOTS), INSIDE.numpy()
    torch.testing.assert_close(schedule.logsnr(INSIDE), Cosine().logsnr(torch.from_numpy(np.interp(t, *KNOTS))))
    assert Learned(Flow(), (0.0, 1.0), (0.0, 1.0)).alpha_sigma(0.3) == Flow().alpha_sigma(0.3)


@pytest.mark.parametrize(
    "build",
    [
        lambda: VP(0.0, 20.0),
        lambda: VP(2.0, 1.0),
        lambda: VP(math.nan, 1.0),
        lambda: Cosine(0.0),
        lambda: VE(0.0, 50.0),
        lambda: VE(2.0, 1.0),
        lambda: EDM(rho=0.0),
        lambda: Shifted(Flow(), 0.0),
        lambda: Tabulated(()),
        lambda: Tabulated((0.5, 0.5)),
        lambda: Tabulated((1.0, 0.5)),
        lambda: Tabulated((0.5, -0.1)),
        lambda: Tabulated((0.5, math.nan)),
        lambda: Learned(Flow(), (0.0, 1.0), (0.0, 0.9)),
        lambda: Learned(Flow(), (0.0, 0.5, 1.0), (0.0, 1.0)),
        lambda: Learned(Flow(), (0.0, 0.5, 1.0), (0.0, 0.0, 1.0)),
        lambda: Learned(Flow(), (0.0,), (0.0,)),
    ],
)
def test_constants_that_make_no_schedule_are_refused(build):
    with pytest.raises(UserError):
        build()
