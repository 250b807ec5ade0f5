"""Classifier-free guidance against the two calls it is made of and against Bayes' rule by hand."""

import pytest
import torch

import backdrift as bd
from backdrift.guide import ClassifierFree
from backdrift.process import Gaussian

MEANS = torch.tensor([[-1.0, 0.5], [2.0, 0.0], [0.5, -2.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
VARIANCES = torch.tensor([0.3, 0.6, 0.2], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0])
PROCESS = Gaussian(bd.schedule.VP())
EXACT = bd.exact.Mixture(WEIGHTS, MEANS, VARIANCES, labels=LABELS).denoiser(PROCESS)
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5
COND = {"label": torch.tensor([0, 1, 0, 1, 0, 1])}


def by_hand(x, t, label=None):
    """(E[x_0 | x_t = x], log p_t(x)) of the components with this label, one point at a time."""
    alpha, sigma = (float(v) for v in PROCESS.schedule.alpha_sigma(t))
    allowed = torch.ones(3, dtype=torch.bool) if label is None else label == LABELS
    total = alpha**2 * VARIANCES + sigma**2
    gap = x - alpha * MEANS
    density = (WEIGHTS * allowed) / WEIGHTS[allowed].sum() / total * torch.exp(-(gap**2).sum(1) / (2 * total))
    mean = MEANS + (alpha * VARIANCES / total)[:, None] * gap
    return (density[:, None] * mean).sum(0) / density.sum(), density.sum().log()


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.0, 7.5])
def test_means_are_the_stated_combination(t, w):
    guided = ClassifierFree(EXACT, w)(X, t, COND).mean
    for x, label, found in zip(X, COND["label"], guided, strict=True):
        plain, given = by_hand(x, t)[0], by_hand(x, t, label)[0]
        torch.testing.assert_close(found, (1 - w) * plain + w * given, rtol=1e-9, atol=1e-9)


def test_scores_are_those_of_the_sharpened_density():
    """(alpha D - x) / sigma^2 is the gradient of (1 - w) log p_t(x) + w log p_t(x | label), by finite differences."""
    t, w, h = 0.4, 3.0, 1e-5
    alpha, sigma = (float(v) for v in PROCESS.schedule.alpha_sigma(t))
    score = (alpha * ClassifierFree(EXACT, w)(X, t, COND).mean - X) / sigma**2

    def tilted(x, label):
        return (1 - w) * by_hand(x, t)[1] + w * by_hand(x, t, label)[1]

    for x, label, found in zip(X, COND["label"], score, strict=True):
        step = h * torch.eye(2, dtype=torch.float64)
        slope = torch.stack([(tilted(x + e, label) - tilted(x - e, label)) / (2 * h) for e in step])
        torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-6)


class Counted(bd.Denoiser):
    def __init__(self):
        super().__init__()
        self.process, self.event_shape, self.calls = PROCESS, (2,), []

    def forward(self, xt, t, cond=None):
        self.calls.append(cond)
        return EXACT(xt, t, cond)


def test_weights_0_and_1_are_exactly_one_call():
    for w, expected, cond in ((0.0, EXACT(X, 0.4, {}), {}), (1.0, EXACT(X, 0.4, COND), COND)):
        counted = Counted()
        assert torch.equal(ClassifierFree(counted, w)(X, 0.4, COND).mean, expected.mean)
        assert counted.calls == [cond]
    counted = Counted()
    ClassifierFree(counted, 2.0)(X, 0.4, COND)
    assert len(counted.calls) == 2


def test_only_what_is_dropped_is_left_out():
    counted = Counted()
    both = {**COND, "place": torch.zeros(6)}
    ClassifierFree(counted, 2.0)(X, 0.4, both)
    assert [set(cond) for cond in counted.calls] == [{"label", "place"}, {"place"}]


def test_each_sample_is_guided_on_its_own():
    whole = ClassifierFree(EXACT, 2.0)(X, 0.4, COND).mean
    for i in range(len(X)):
        alone = ClassifierFree(EXACT, 2.0)(X[i : i + 1], 0.4, {"label": COND["label"][i : i + 1]}).mean
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-12, atol=1e-12)


def test_guidance_moves_samples_towards_their_label():
    """Two far classes on a line: the share of samples beyond the label's own mean rises with the weight."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    exact = bd.exact.Mixture(torch.tensor([0.5, 0.5]), means, 0.5, labels=torch.tensor([0, 1])).denoiser(PROCESS)
    cond = {"label": torch.ones(400, dtype=torch.int64)}
    drawn = [
        bd.sample(ClassifierFree(exact, w), shape=(400, 1), steps=20, cond=cond, seed=0).mean().item()
        for w in (0.0, 1.0, 3.0)
    ]
    assert abs(drawn[0]) < 0.25 and abs(drawn[1] - 1) < 0.15 and drawn[2] > drawn[1] + 0.3


def test_mistakes():
    for bad in (-1.0, float("nan")):
        with pytest.raises(bd.UserError, match="A guidance weight"):
            ClassifierFree(EXACT, bad)
    for cond in (None, {}, {"place": torch.zeros(6)}):
        with pytest.raises(bd.UserError, match="Guidance needs a condition to follow: give label"):
            ClassifierFree(EXACT, 2.0)(X, 0.4, cond)
