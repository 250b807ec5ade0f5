"""Samplers that set what A sees, and those that correct the mean: consistency, re-derivations, finite differences."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.exact import Mixture
from backdrift.inverse import (
    DDNM,
    DDRM,
    MCG,
    MPGD,
    DiffPIR,
    Function,
    Linear,
    Replacement,
    ReSample,
    StepDPS,
)
from backdrift.inverse.corrected import Guess
from backdrift.noise import Noise
from backdrift.process import Gaussian as Process


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def prior():
    return Mixture(torch.ones(2), random(2, 4), 0.2)


@pytest.mark.parametrize(
    "run", [DDNM(), DDRM(), MCG(zeta=0.1), Replacement(), ReSample()], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("schedule", [bd.schedule.VP(), bd.schedule.Flow()])  # EDM ends at sigma = 0.002
def test_outputs_agree_with_a_y_without_noise(run, schedule):
    measurement, y = Linear(random(2, 4, seed=2), 1e-6), random(2, seed=3)
    draws = run(prior().denoiser(Process(schedule)), measurement, y, 6, steps=6, noise=Noise.of(0, 6))
    assert (measurement.forward(draws) - y).abs().max() < 1e-5
    assert draws.std(0).max() > 1e-2  # and the rest is drawn


def ddrm_by_matrices(denoiser, A, y, std, x1, times, draws, eta, eta_b):
    """Kawar et al. Eq. 4 and 5, one coordinate at a time, from the full SVD."""
    U, S, Vt = torch.linalg.svd(A)
    values = torch.cat([S, torch.zeros(A.shape[1] - len(S)).double()])
    target = U.mT @ y
    schedule = denoiser.process.schedule
    level = [float(s / a) for a, s in map(schedule.alpha_sigma, times)]
    z = x1 / float(schedule.alpha_sigma(times[0])[0]) @ Vt.mT
    for i, value in enumerate(values):
        if value > 0 and std / value < level[0]:
            noise = z[:, i] / level[0]
            z[:, i] = target[i] / value + math.sqrt(level[0] ** 2 - (std / value) ** 2) * noise
    for k in range(len(times) - 1):
        D = denoiser(float(schedule.alpha_sigma(times[k])[0]) * (z @ Vt), times[k]).mean @ Vt.mT
        e, new, rho = draws[k] @ Vt.mT, torch.empty_like(z), level[k + 1]
        for i, value in enumerate(values):
            if value == 0:
                mean, sd = D[:, i] + math.sqrt(1 - eta**2) * rho * (z[:, i] - D[:, i]) / level[k], eta * rho
            elif rho < std / value:
                mean = D[:, i] + math.sqrt(1 - eta**2) * rho * (target[i] / value - D[:, i]) / (std / value)
                sd = eta * rho
            else:
                mean = (1 - eta_b) * D[:, i] + eta_b * target[i] / value
                sd = math.sqrt(rho**2 - eta_b**2 * std**2 / value**2)
            new[:, i] = mean + sd * e[:, i]
        z = new
    return z @ Vt


@pytest.mark.parametrize("eta_b", [1.0, 0.6])
def test_ddrm_is_its_papers_equations(eta_b):
    A, y, std, n, steps = random(3, 4, seed=2), random(3, seed=3), 0.4, 5, 7
    A[2] *= 0.02  # a direction whose noise is larger than every level's
    denoiser, noise = prior().denoiser(Process(bd.schedule.VP())), Noise.of(0, n)
    ours = DDRM(eta=0.7, eta_b=eta_b)(denoiser, Linear(A, std), y, n, steps=steps, noise=noise)
    x1 = denoiser.process.prior(torch.zeros(n, 4).double(), noise.at("prior"))
    draws = [noise.at("ddrm", k).normal(x1) for k in range(steps)]
    times = bd.grids.Angle().times(bd.schedule.VP(), steps).tolist()
    theirs = ddrm_by_matrices(denoiser, A, y, std, x1, times, draws, 0.7, eta_b)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_ddrm_needs_one_noise():
    with pytest.raises(UserError, match="one standard deviation"):
        DDRM().check(Linear(random(2, 4), torch.tensor([0.1, 0.2])))


def test_corrections_are_what_they_minimise():
    A, y, mean, std = random(2, 3), random(1, 2, seed=1), random(4, 3, seed=2), 0.3
    alpha, sigma = (torch.full((4,), v, dtype=torch.float64) for v in (0.8, 0.6))
    at = Guess(mean, alpha, sigma, Linear(A, std), y)
    found = DiffPIR(strength=3.0).correct(at).requires_grad_()
    objective = (y - found @ A.mT).square().sum() / std**2 + 3.0 * (0.8 / 0.6) ** 2 * (found - mean).square().sum()
    assert torch.autograd.grad(objective, found)[0].abs().max() < 1e-9
    # MPGD: finite differences of the squared residual, for an operator that is not linear
    bent = Function(torch.sin, (3,), std)
    target = random(1, 3, seed=5)
    moved = MPGD(rate=0.1).correct(Guess(mean, alpha, sigma, bent, target))
    for j in range(3):
        step = 1e-5 * torch.eye(3).double()[j]
        up, down = ((target - torch.sin(mean + sign * step)).square().sum(1) for sign in (1, -1))
        torch.testing.assert_close(moved[:, j], mean[:, j] - 0.1 * (up - down) / 2e-5, rtol=1e-6, atol=1e-7)


def test_published_dps_moves_by_the_norms_gradient_however_short_the_step():
    denoiser, measurement, y = prior().denoiser(Process(bd.schedule.VP())), Linear(random(2, 4, seed=2), 0.3), random(2)
    seen, noise = [], Noise.of(0, 3)
    with_, without = (
        StepDPS(zeta=zeta)(denoiser, measurement, y, 3, steps=1, noise=noise, on_step=seen.append) for zeta in (0.7, 0)
    )
    x, t = seen[0].state, seen[0].t

    def norm(x):
        return (y - measurement.forward(denoiser(x, t).mean)).norm(dim=1)

    for j in range(4):
        step = 1e-5 * torch.eye(4).double()[j]
        slope = (norm(x + step) - norm(x - step)) / 2e-5
        torch.testing.assert_close((with_ - without)[:, j], -0.7 * slope, rtol=1e-5, atol=1e-8)


def test_mcg_ends_as_published_dps_does_where_y_says_nothing_of():
    denoiser, A, noise = prior().denoiser(Process(bd.schedule.VP())), torch.eye(4)[:2].double(), Noise.of(0, 3)
    runs = (MCG(zeta=0.5), StepDPS(zeta=0.5))
    mcg, dps = (run(denoiser, Linear(A, 0.1), torch.zeros(2).double(), 3, steps=1, noise=noise) for run in runs)
    torch.testing.assert_close(mcg[:, 2:], dps[:, 2:])
    assert mcg[:, :2].abs().max() < 1e-12
