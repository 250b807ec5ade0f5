"""Measurements against dense linear algebra, and noise models against their own integrals."""

import math

import pytest
import torch

from backdrift import UserError
from backdrift.exact import Atoms, Gaussian
from backdrift.inverse import Function, GaussianNoise, Linear, PoissonNoise, RoundedNoise, compose, stack
from backdrift.inverse.measurement import LinearMeasurement
from backdrift.inverse.solve import conjugate_gradients
from backdrift.noise import Noise


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Doubled(LinearMeasurement):
    """A user's operator: only `forward`. Every second number, twice, with different noise on each."""

    def __init__(self):
        self.event_shape, self.shape = (2, 4), (4,)
        self.noise = GaussianNoise(torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def forward(self, x):
        return 2 * x.flatten(1)[:, ::2]


def cases():
    dense = Linear(random(3, 8, seed=1), 0.3, (2, 4))
    tall = Linear(random(11, 8, seed=2), 0.3, (2, 4))
    rough = Linear(random(3, 8, seed=1), torch.tensor([0.1, 0.5, 0.9]), (2, 4))
    return {
        "dense": dense,
        "tall": tall,
        "noise per number": rough,
        "user's": Doubled(),
        "composed": compose(Linear(random(2, 4, seed=3), 0.2), Doubled()),
        "stacked": stack(dense, Doubled()),
    }


@pytest.fixture(params=list(cases()))
def measurement(request):
    return cases()[request.param]


def test_matrix_and_adjoint(measurement):
    x, v = random(5, 2, 4), random(5, *measurement.shape, seed=4)
    A = measurement.matrix()
    torch.testing.assert_close(measurement.forward(x), x.flatten(1) @ A.mT)
    torch.testing.assert_close(measurement.adjoint(v).flatten(1), v @ A)
    torch.testing.assert_close(measurement.vjp(x, v).flatten(1), v @ A)


def test_solve_against_a_dense_inverse(measurement):
    A, right = measurement.matrix(), random(4, *measurement.shape, seed=5)
    variance = torch.diag(measurement.variance(right)[0])
    scale = torch.tensor([0.0, 0.1, 1.0, 50.0], dtype=torch.float64)
    found = measurement.solve(right, scale)
    for row, c, z in zip(right, scale, found, strict=True):
        torch.testing.assert_close(z, torch.linalg.solve(c * A @ A.mT + variance, row), rtol=1e-7, atol=1e-7)


def test_pseudo_inverse(measurement):
    A, y = measurement.matrix(), random(4, *measurement.shape, seed=6)
    torch.testing.assert_close(measurement.pinv(y).flatten(1), y @ torch.linalg.pinv(A).mT, rtol=1e-6, atol=1e-6)
    x = random(4, 2, 4)
    torch.testing.assert_close(measurement.forward(measurement.seen(x)), measurement.forward(x), rtol=1e-6, atol=1e-6)


def test_prox_is_the_posterior_mean_of_a_gaussian(measurement):
    x, y, scale = random(1, 2, 4), random(1, *measurement.shape, seed=7), 0.7
    prior = Gaussian(x[0], scale)
    expected = prior.given(measurement, y[0]).means.view(2, 4)
    torch.testing.assert_close(measurement.prox(x, y, torch.tensor([scale]))[0], expected, rtol=1e-7, atol=1e-7)


def test_stacked_log_likelihood_is_the_sum():
    a, b = Linear(random(3, 8), 0.3, (2, 4)), Doubled()
    x, y = random(5, 2, 4), random(7, seed=8)
    expected = a.log_likelihood(x, y[:3]) + b.log_likelihood(x, y[3:])
    torch.testing.assert_close(stack(a, b).log_likelihood(x, y), expected)


def test_draws_have_the_noise_of_the_law():
    A = random(2, 3)
    clean = random(1, 3).expand(40_000, 3)
    y = Linear(A, torch.tensor([0.1, 0.7])).draw(clean, Noise.of(0, 40_000))
    gap = y - clean @ A.mT
    torch.testing.assert_close(gap.std(0), torch.tensor([0.1, 0.7], dtype=torch.float64), rtol=0.02, atol=0)
    assert gap.mean(0).abs().max() < 0.02


def test_gaussian_density_integrates_to_one():
    y = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    density = GaussianNoise(0.7).log_prob(torch.full_like(y, 0.3), y).exp()
    assert float(density.sum() * 12 / 4000) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.4, 3.0, 60.0])
def test_counts(rate):
    peak = 20.0
    model, n = PoissonNoise(peak), 20_000
    clean = torch.full((n, 1), rate / peak, dtype=torch.float64)
    counts = model.draw(clean, Noise.of(1, n)) * peak
    torch.testing.assert_close(counts, counts.round())
    assert float(counts.mean()) == pytest.approx(rate, abs=5 * math.sqrt(max(rate, 1e-9) / n) + 1e-9)
    assert float(counts.var()) == pytest.approx(rate, rel=0.06, abs=1e-9)
    k = torch.arange(200, dtype=torch.float64)[:, None]
    assert float(model.log_prob(clean[:200], k / peak).exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("std", [0.0, 0.05, 2.0])
def test_rounded_masses_sum_to_one_and_draws_follow_them(std):
    model, n = RoundedNoise(0.5, std), 20_000
    y = torch.arange(-60, 61, dtype=torch.float64)[:, None] * 0.5
    clean = torch.full_like(y, 0.31)
    mass = model.log_prob(clean, y).exp()
    assert float(mass.sum()) == pytest.approx(1, abs=1e-9)
    drawn = model.draw(torch.full((n, 1), 0.31, dtype=torch.float64), Noise.of(2, n))
    for value, p in zip(y[55:66, 0], mass[55:66], strict=True):
        share = float((drawn[:, 0] == value).double().mean())
        assert share == pytest.approx(float(p), abs=5 * math.sqrt(0.25 / n))


def test_rounded_tail_is_finite_and_has_a_gradient():
    clean = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    log_prob = RoundedNoise(0.5, 0.01).log_prob(clean, torch.full((1, 1), 30.0, dtype=torch.float64))
    (slope,) = torch.autograd.grad(log_prob.sum(), clean)
    # far out the cell's mass falls as its nearer edge's Gaussian tail
    assert float(slope) == pytest.approx(29.75 / 0.01**2, rel=1e-3)


def test_conjugate_gradients_do_not_depend_on_the_batch():
    M = random(6, 6)
    M = M @ M.mT + torch.eye(6, dtype=torch.float64)
    right = torch.stack([random(6, seed=1), 1e6 * random(6, seed=2), torch.zeros(6).double()])
    together = conjugate_gradients(lambda v: v @ M, right, 4)
    alone = torch.cat([conjugate_gradients(lambda v: v @ M, row[None], 4) for row in right])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(conjugate_gradients(lambda v: v @ M, right), torch.linalg.solve(M, right.mT).mT)


def test_nonlinear_measurement_reweights_atoms():
    points = random(6, 3)
    squares = Function(lambda x: x.square().sum(1, keepdim=True), (3,), 0.5)
    y = torch.tensor([2.0], dtype=torch.float64)
    expected = torch.softmax(-((2.0 - points.square().sum(1)) ** 2) / (2 * 0.25), 0)
    torch.testing.assert_close(Atoms(points).given(squares, y).weights, expected)
    with pytest.raises(UserError, match="linear measurements"):
        Gaussian(points[0], 1.0).given(squares, y)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Linear(random(3), 0.1), "two axes"),
        (lambda: Linear(random(3, 4), 0.0), "must be positive"),
        (lambda: Linear(random(3, 4), 0.1, (5,)), "takes 4 numbers"),
        (lambda: Linear(random(3, 4), 0.1).batched(random(4)), "shape \\(3,\\)"),
        (lambda: Linear(random(3, 4), 0.1).batched(torch.full((3,), math.nan)), "missing"),
        (lambda: compose(Linear(random(2, 3), 0.1), Linear(random(4, 5), 0.1)), "the inner one gives"),
        (lambda: stack(Linear(random(2, 3), 0.1), Linear(random(4, 5), 0.1)), "same shape"),
        (lambda: Linear(random(3, 4), PoissonNoise(5)).solve(random(1, 3), torch.ones(1)), "Gaussian noise"),
        (lambda: PoissonNoise(0), "peak"),
        (lambda: RoundedNoise(-1), "positive step"),
    ],
)
def test_mistakes_are_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
