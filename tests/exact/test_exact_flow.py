"""The probability flow: closed form, fourth order, a semigroup, and a transport of p_t onto p_s."""

import pytest
import torch
from scipy import integrate, optimize, stats

from backdrift import schedule
from backdrift.errors import UserError
from backdrift.exact import Atoms, Gaussian, Mixture
from backdrift.process import Gaussian as Corruption

COV = torch.tensor([[1.0, 0.3], [0.3, 0.2]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -20.0], dtype=torch.float64)


@pytest.mark.parametrize("sch", [schedule.VP(), schedule.EDM(), schedule.Flow()], ids=["VP", "EDM", "Flow"])
@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.7, 0.2), (0.1, 0.9), (0.0, 1.0)])
def test_gaussian_closed_form_is_the_integrated_flow(sch, ends):
    closed = Gaussian(MEAN, COV).denoiser(Corruption(sch))
    stepped = Mixture(torch.ones(1), MEAN[None], COV[None]).denoiser(Corruption(sch))
    x = closed.draw(4, ends[0])
    torch.testing.assert_close(stepped.flow(x, *ends, steps=200), closed.flow(x, *ends), rtol=1e-6, atol=1e-6)


def test_gaussian_flow_obeys_the_equation():
    """dx/dt = f x - g^2 score / 2, with f = alpha'/alpha and g^2 = 2 sigma (sigma' - f sigma)."""
    sch = schedule.Cosine()
    denoiser = Gaussian(MEAN, COV).denoiser(Corruption(sch))
    t, x = 0.4, denoiser.draw(3, 0.4)
    (alpha, sigma), (d_alpha, d_sigma) = sch.alpha_sigma(t), sch.rates(t)
    f = d_alpha / alpha
    velocity = f * x - sigma * (d_sigma - f * sigma) * denoiser.score(x, t)
    measured = (denoiser.flow(x, t, t + 1e-5) - denoiser.flow(x, t, t - 1e-5)) / 2e-5
    torch.testing.assert_close(measured, velocity, rtol=1e-7, atol=1e-6)


def ring() -> Mixture:
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    return Mixture(torch.arange(1.0, 9.0), torch.stack([angle.cos(), angle.sin()], 1), 0.01)


def test_fourth_order_and_semigroup():
    denoiser = ring().denoiser(Corruption(schedule.VP()))
    x = denoiser.draw(16, 1.0)
    fine = denoiser.flow(x, 1.0, 0.05, steps=300)
    errors = [float((denoiser.flow(x, 1.0, 0.05, steps=n) - fine).norm()) for n in (40, 80)]
    assert errors[0] / errors[1] > 12
    assert float((denoiser.flow(x, 1.0, 0.05, steps=150) - fine).abs().max()) < 2e-6
    twice = denoiser.flow(denoiser.flow(x, 1.0, 0.4, steps=200), 0.4, 0.05, steps=200)
    torch.testing.assert_close(twice, fine, rtol=0, atol=1e-7)
    torch.testing.assert_close(denoiser.flow(x, 0.3, 0.3, steps=2), x, rtol=1e-12, atol=1e-12)
    back = denoiser.flow(denoiser.flow(x, 0.9, 0.0, steps=200), 0.0, 0.9, steps=200)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)


def test_schedules_share_one_flow():
    """The map depends on the two noise-to-signal ratios alone, up to the scale of x."""
    vp, edm = schedule.VP(), schedule.EDM()
    t, s = float(edm.time(-3.0)), float(edm.time(3.0))
    other, start = ring().denoiser(Corruption(edm)), ring().denoiser(Corruption(vp))
    a, b = (vp.alpha_sigma(vp.time(k))[0] for k in (-3.0, 3.0))
    x = other.draw(5, t)
    moved = start.flow(a * x, float(vp.time(-3.0)), float(vp.time(3.0)))
    torch.testing.assert_close(moved / b, other.flow(x, t, s), rtol=1e-8, atol=1e-8)


def test_flow_keeps_the_quantile_in_one_dimension():
    weights, means, variances = (0.3, 0.7), (-1.0, 2.0), (0.04, 0.25)
    sch = schedule.Cosine()

    def cdf(x, t):
        alpha, sigma = (float(v) for v in sch.alpha_sigma(t))
        return sum(
            w * stats.norm(alpha * m, (alpha**2 * v + sigma**2) ** 0.5).cdf(x)
            for w, m, v in zip(weights, means, variances, strict=True)
        )

    column = torch.tensor(means, dtype=torch.float64)[:, None]
    mixture = Mixture(torch.tensor(weights), column, torch.tensor(variances, dtype=torch.float64))
    levels = torch.linspace(0.01, 0.99, 21).tolist()
    for t, s in ((1.0, 0.0), (0.9, 0.3), (0.2, 0.8)):
        x = torch.tensor([[optimize.brentq(lambda v, q=q, t=t: cdf(v, t) - q, -9, 9, xtol=1e-13)] for q in levels])
        moved = mixture.denoiser(Corruption(sch)).flow(x.double(), t, s)
        for q, value in zip(levels, moved.flatten().tolist(), strict=True):
            assert cdf(value, s) == pytest.approx(q, abs=2e-6)


def test_flow_of_atoms_ends_on_atoms():
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = Atoms(points).denoiser(Corruption(schedule.VP()))
    x = denoiser.draw(10, 1.0)
    end = denoiser.flow(x, 1.0, 0.0, steps=150)
    assert float(torch.cdist(end, points).min(1).values.max()) < 1e-9
    # against an adaptive solver in the schedule's own time
    sch = schedule.VP()

    def velocity(t, x):
        _, sigma = sch.alpha_sigma(t)
        d_alpha, d_sigma = sch.rates(t)
        state = torch.from_numpy(x).view(1, 2)
        eps = -sigma * denoiser.score(state, t)
        return (d_alpha * denoiser(state, t).mean + d_sigma * eps).flatten().numpy()

    solved = integrate.solve_ivp(velocity, (1.0, 0.05), x[0].numpy(), method="DOP853", rtol=1e-9, atol=1e-11)
    moved = denoiser.flow(x[:1], 1.0, 0.05, steps=150)
    torch.testing.assert_close(moved[0], torch.from_numpy(solved.y[:, -1]), rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError):
        denoiser.flow(x, 0.0, 0.5)
