"""p-values and areas under curves, against scikit-learn and by hand; the scores beside KLIP, by their definitions."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

import backdrift as bd
from backdrift.inverse import Exact, Linear
from backdrift.trust import Null, Reference, auroc, baselines, klip, pixel_auroc


def test_ranks_by_hand():
    null = Null(torch.arange(1.0, 100.0))  # 1 .. 99
    scores = torch.tensor([0.5, 1.0, 50.0, 99.0, 200.0])
    assert null.above(scores).tolist() == pytest.approx([1.0, 1.0, 0.51, 0.02, 0.01])
    assert null.below(scores).tolist() == pytest.approx([0.01, 0.02, 0.51, 1.0, 1.0])
    assert null.two_sided(scores).tolist() == pytest.approx([0.02, 0.04, 1.0, 0.04, 0.02])


def test_unusual_pixels_count_standard_deviations_of_the_logarithm():
    maps = torch.exp(torch.linspace(-1, 1, 20).double())[:, None].expand(20, 3)
    null, std = Null(torch.rand(20), maps), torch.linspace(-1, 1, 20).double().std()
    new = torch.exp(torch.tensor([[0.0, 1.0, -2.0]]).double())
    assert torch.allclose(null.unusual(new), torch.tensor([[0.0, 1.0, -2.0]]).double() / std)


def test_areas_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    usual, unusual = torch.randn(80, generator=generator), torch.randn(50, generator=generator) + 0.8
    unusual[:5] = usual[:5]
    rate = auroc(usual, unusual)
    truth = roc_auc_score([0] * 80 + [1] * 50, torch.cat([usual, unusual]).numpy())
    assert rate.value == pytest.approx(truth, abs=1e-12)
    assert 0.5 < rate.low < rate.value < rate.high < 0.9
    maps, masks = torch.randn(6, 1, 8, 8, generator=generator).round(decimals=1), torch.zeros(6, 1, 8, 8)
    masks[:, :, 2:4, 2:5] = 1
    maps = maps + masks
    each = [roc_auc_score(m.flatten().numpy(), v.flatten().numpy()) for m, v in zip(masks, maps, strict=True)]
    assert pixel_auroc(maps, masks).value == pytest.approx(sum(each) / 6, abs=1e-12)


def test_the_other_scores():
    prior = bd.exact.Gaussian(torch.zeros(4).double(), torch.tensor([1.0, 2.0, 0.5, 1.0]).double().diag())
    seen = Linear(torch.eye(4).double()[:2], 0.5)
    denoiser = prior.denoiser(bd.process.Gaussian(bd.schedule.Flow()))
    y = torch.tensor([[0.3, -1.0], [4.0, 4.0]], dtype=torch.float64)
    found = klip(Exact(), denoiser, seen, y, 2000)
    pictures = prior.draw(4000, 9)
    scores = baselines(found, denoiser, seen, y, Reference(pictures), levels=64)
    residual = (y - found.mean[:, :2]) / 0.5
    gap = (scores["residual"].scores[1] - scores["residual"].scores[0]) * 2
    assert float(gap) == pytest.approx(float(residual[1].square().sum() - residual[0].square().sum()), rel=1e-9)
    assert torch.allclose(scores["residual"].map[:, :2], (residual * 0.5).square())
    # exact posterior variances: v s^2 / (v + s^2) where seen, v where not
    variance = torch.tensor([1 * 0.25 / 1.25, 2 * 0.25 / 2.25, 0.5, 1.0])
    assert torch.allclose(scores["spread"].map[0], variance.double(), rtol=0.12)
    expected = found.mean.square() / torch.tensor([1.0, 2.0, 0.5, 1.0])
    assert torch.allclose(scores["mahalanobis"].scores, expected.sum(1), rtol=0.1, atol=0.05)
    density = -prior.log_prob(found.mean)
    # all pictures meet the same noise, one draw for each level: what that adds drops out of their difference
    assert float(scores["likelihood"].scores.diff()) == pytest.approx(float(density.diff()), rel=0.08)
    for name, score in scores.items():
        assert score.scores.shape == (2,) and score.map.shape == (2, 4), name
        if name != "residual":
            assert torch.allclose(score.map.sum(1), score.scores)


def test_bad_input():
    with pytest.raises(bd.UserError, match="at least 19"):
        Null(torch.rand(10))
    with pytest.raises(bd.UserError, match="without maps"):
        Null(torch.rand(30)).unusual(torch.rand(2, 3))
    with pytest.raises(bd.UserError, match="hold some pixels"):
        pixel_auroc(torch.rand(1, 4), torch.ones(1, 4))
