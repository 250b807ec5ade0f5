"""Guidance by gradients and composed conditions, against closed forms."""

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.guide import Apart, Classifier, Composed, NoisyClassifier, Reward, exact_classifier
from backdrift.process import Gaussian

SCHEDULES = [bd.schedule.VP(), bd.schedule.Flow(), bd.schedule.EDM()]
LABELS = torch.tensor([0, 1, 0, 2])
MIXTURE = bd.exact.Mixture(
    torch.tensor([0.2, 0.4, 0.3, 0.1]).double(),
    torch.tensor([[-1.0, 0.5], [2.0, 0.0], [0.5, -2.0], [1.0, 1.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.6, 0.2, 0.5], dtype=torch.float64),
    labels=LABELS,
)
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5
COND = {"label": torch.tensor([0, 1, 2, 1, 0, 2])}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_exact_classifier_gives_the_exact_conditional(schedule, t):
    denoiser = MIXTURE.denoiser(Gaussian(schedule))
    guided = Classifier(denoiser, exact_classifier(denoiser))
    x = denoiser.draw(6, t)
    torch.testing.assert_close(guided(x, t, COND).mean, denoiser(x, t, COND).mean, rtol=1e-10, atol=1e-10)


def test_classifier_weight_tilts_by_the_power_of_the_class():
    denoiser, t, h = MIXTURE.denoiser(Gaussian(bd.schedule.VP())), 0.4, 1e-5
    log_prob = exact_classifier(denoiser)
    alpha, sigma = (float(v) for v in bd.schedule.VP().alpha_sigma(t))
    moved = Classifier(denoiser, log_prob, 2.5)(X, t, COND).mean - denoiser(X, t).mean
    for i, e in enumerate(torch.eye(2, dtype=torch.float64) * h):
        slope = (log_prob(X + e, t, COND) - log_prob(X - e, t, COND)) / (2 * h)
        torch.testing.assert_close(moved[:, i], 2.5 * sigma**2 / alpha * slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_linear_reward_is_exact_on_a_gaussian(schedule):
    """exp(w b x) N(m, C) is N(m + w C b, C)."""
    C = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    m, b, w = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.7, 0.4]).double(), 1.7
    process = Gaussian(schedule)
    tilted = bd.exact.Gaussian(m + w * C @ b, C).denoiser(process)
    guided = Reward(bd.exact.Gaussian(m, C).denoiser(process), lambda x: x @ b, w)
    for t in (0.1, 0.5, 0.95):
        torch.testing.assert_close(guided(X, t).mean, tilted(X, t).mean, rtol=1e-9, atol=1e-9)


def test_start_of_a_schedule_without_signal_is_finite():
    process = Gaussian(bd.schedule.Flow())
    m, C, b = torch.zeros(2).double(), torch.eye(2).double(), torch.tensor([0.7, 0.4]).double()
    guided = Reward(bd.exact.Gaussian(m, C).denoiser(process), lambda x: x @ b)
    # nothing is known of x_0 at t = 1, so its mean is the tilted one, but for LEAST
    torch.testing.assert_close(guided(X, 1.0).mean, (C @ b).expand(6, 2), rtol=0, atol=5e-3)


def test_apart_is_the_gradient_of_its_potential():
    process, t, h = Gaussian(bd.schedule.VP()), 0.4, 1e-6
    denoiser = MIXTURE.denoiser(process)
    alpha, sigma = (float(v) for v in process.schedule.alpha_sigma(t))
    D = denoiser(X, t).mean
    gaps = torch.stack([(D[i] - D[j]).square().sum() for i in range(6) for j in range(6) if i != j])
    width = gaps.median() / torch.log(torch.tensor(6.0, dtype=torch.float64))

    def potential(x):
        D = denoiser(x, t).mean
        pairs = [(D[i] - D[j]).square().sum() for i in range(6) for j in range(i)]
        return -sum(torch.exp(-gap / width) for gap in pairs)

    moved = (Apart(denoiser, 3.0)(X, t).mean - D) * alpha / sigma**2
    for i, k in ((0, 0), (3, 1), (5, 0)):
        e = torch.zeros_like(X)
        e[i, k] = h
        slope = (potential(X + e) - potential(X - e)) / (2 * h)
        assert float(moved[i, k]) == pytest.approx(3 * float(slope), rel=1e-4, abs=1e-7)
    torch.testing.assert_close(Apart(denoiser, 3.0)(X[:1], t).mean, D[:1])


def test_apart_spreads_the_samples():
    denoiser = MIXTURE.denoiser(Gaussian(bd.schedule.VP()))
    plain = bd.sample(denoiser, shape=(8, 2), steps=12, seed=1)
    spread = bd.sample(Apart(denoiser, 6.0), shape=(8, 2), steps=12, seed=1)
    assert torch.pdist(spread).min() > torch.pdist(plain).min()


def test_composed_is_the_stated_combination():
    denoiser = MIXTURE.denoiser(Gaussian(bd.schedule.VP()))
    found = Composed(denoiser, [({"label": 0}, 1.0), ({"label": COND["label"]}, 0.5), ({"label": 2}, -0.3)])(X, 0.4)
    D = {i: denoiser(X, 0.4, {"label": torch.full((6,), i)}).mean for i in range(3)}
    base = denoiser(X, 0.4).mean
    expected = base + (D[0] - base) + 0.5 * (denoiser(X, 0.4, COND).mean - base) - 0.3 * (D[2] - base)
    torch.testing.assert_close(found.mean, expected)


def test_composed_tokens_multiply_probabilities():
    points = torch.tensor([[0, 1], [1, 1], [2, 0], [0, 2]])
    atoms = bd.exact.Atoms(points, labels=torch.tensor([0, 0, 1, 1]))
    denoiser = atoms.denoiser(bd.process.UniformTokens(3))
    x = torch.tensor([[0, 1], [2, 2]])
    found = Composed(denoiser, [({"label": 0}, 1.0), ({"label": 1}, 0.5)])(x, 0.6).log_probs
    base, *given = (
        denoiser(x, 0.6, cond).mean for cond in ({}, {"label": torch.zeros(2).long()}, {"label": torch.ones(2).long()})
    )
    weights = torch.where(base > 0, given[0] * (given[1] / base) ** 0.5, 0.0)
    expected = weights / weights.sum(-1, keepdim=True)
    possible = weights.sum(-1) > 0
    assert bool(possible.any())
    torch.testing.assert_close(found.exp()[possible], expected[possible])
    torch.testing.assert_close(found.exp()[~possible], base[~possible])


def test_noisy_classifier_sees_unit_variance_and_the_angle():
    seen = {}

    class Net(torch.nn.Module):
        def forward(self, x, noise):
            seen["x"], seen["noise"] = x, noise
            return torch.stack([x.sum(1), 0 * noise], 1)

    process = Gaussian(bd.schedule.EDM())
    classifier = NoisyClassifier(Net(), process, 0.5)
    x = torch.randn(5, 2)
    got = classifier(x, 0.5, {"label": torch.tensor([0, 1, 0, 1, 0])})
    alpha, sigma = (float(v) for v in process.schedule.alpha_sigma(0.5))
    torch.testing.assert_close(seen["x"], x / (sigma**2 + 0.25 * alpha**2) ** 0.5, rtol=1e-5, atol=1e-6)
    assert float(seen["noise"][0]) == pytest.approx(torch.atan2(torch.tensor(sigma), torch.tensor(alpha / 2)).item())
    both = (
        classifier(x, 0.5, {"label": torch.zeros(5).long()}).exp()
        + classifier(x, 0.5, {"label": torch.ones(5).long()}).exp()
    )
    torch.testing.assert_close(both, torch.ones(5))
    assert got.shape == (5,)


def test_mistakes_are_one_sentence():
    denoiser = MIXTURE.denoiser(Gaussian(bd.schedule.VP()))
    with pytest.raises(UserError, match="at least one term"):
        Composed(denoiser, [])
    with pytest.raises(UserError, match="one number per sample"):
        Reward(denoiser, lambda x: x)(X, 0.4)
    tokens = bd.exact.Atoms(torch.tensor([[0, 1]])).denoiser(bd.process.UniformTokens(3))
    with pytest.raises(UserError, match="Gaussian process"):
        Reward(tokens, torch.sum)
