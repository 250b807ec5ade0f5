"""Changing weights, mixing rules and weaker models, each against the formula written out once more."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.guide import AutoGuidance, ClassifierFree, Interval, Projected, Ramp, Rescaled, Rows, plus
from backdrift.process import Gaussian

VP = bd.schedule.VP()
PROCESS = Gaussian(VP)
LABELS = torch.tensor([0, 1, 0])
EXACT = bd.exact.Mixture(
    torch.tensor([0.2, 0.5, 0.3]).double(),
    torch.tensor([[-1.0, 0.5], [2.0, 0.0], [0.5, -2.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.6, 0.2], dtype=torch.float64),
    labels=LABELS,
).denoiser(PROCESS)
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5
COND = {"label": torch.tensor([0, 1, 0, 1, 0, 1])}


def beliefs(t):
    return EXACT(X, t, {}).mean, EXACT(X, t, COND).mean


@pytest.mark.parametrize(("ratio", "expected"), [(0.3, 1.0), (0.5, 1.0), (0.51, 4.0), (2.0, 4.0), (2.01, 1.0)])
def test_interval_is_open_below_and_closed_above(ratio, expected):
    t = float(VP.time(torch.tensor(-2 * math.log(ratio), dtype=torch.float64)))
    t += 1e-9 if ratio == 0.51 else -1e-9 if ratio in (0.5, 2.0) else 0.0
    assert Interval(4.0, 0.5, 2.0).at(t, VP) == expected
    plain, given = beliefs(t)
    guided = ClassifierFree(EXACT, Interval(4.0, 0.5, 2.0))(X, t, COND).mean
    torch.testing.assert_close(guided, plain + expected * (given - plain))


def test_weights_sample_by_sample():
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    law = Ramp(5.0, first=0.5, power=2.0)
    guided = ClassifierFree(EXACT, law)(X, t, COND).mean
    for i in range(6):
        one = ClassifierFree(EXACT, law)(X[i : i + 1], float(t[i]), {"label": COND["label"][i : i + 1]}).mean
        torch.testing.assert_close(guided[i : i + 1], one)


def test_ramp_goes_from_noise_to_data():
    flow = bd.schedule.Flow()
    law = Ramp(5.0, first=0.5, power=2.0)
    assert law.at(1.0, flow) == pytest.approx(0.5)
    assert law.at(0.0, flow) == pytest.approx(5.0)
    # at t = 1/2 of flow the angle is 45 degrees, half of the way
    assert law.at(0.5, flow) == pytest.approx(0.5 + 4.5 / 4)


def test_cfg_plus_plus_is_ddim_with_the_unguided_noise():
    strength, times = 0.6, bd.grids.Angle().times(VP, 7)
    x1 = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x1
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        (alpha, sigma), (alpha_s, sigma_s) = VP.alpha_sigma(t), VP.alpha_sigma(s)
        plain, given = EXACT(x, t, {}).mean, EXACT(x, t, COND).mean
        eps = (x - alpha * plain) / sigma
        x = alpha_s * (plain + strength * (given - plain)) + sigma_s * eps
    plan = bd.solvers.DDIM().plan(VP, times)
    guided = ClassifierFree(EXACT, plus(VP, times, strength))
    torch.testing.assert_close(plan.run(guided, x1, COND), x, rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="other times"):
        guided(X, 0.123, COND)


def test_negative_condition_takes_the_place_of_none():
    guided = ClassifierFree(EXACT, 3.0, against={"label": 1})(X, 0.4, COND).mean
    away, towards = EXACT(X, 0.4, {"label": torch.ones(6).long()}).mean, EXACT(X, 0.4, COND).mean
    torch.testing.assert_close(guided, away + 3 * (towards - away))


def test_rescaled_keeps_the_conditional_deviation():
    plain, given = beliefs(0.4)
    mixed = plain + 6 * (given - plain)
    full = ClassifierFree(EXACT, 6.0, mixing=Rescaled(1.0))(X, 0.4, COND).mean
    torch.testing.assert_close(full.std(1), given.std(1))
    torch.testing.assert_close(full / mixed, (given.std(1) / mixed.std(1))[:, None].expand(6, 2))
    half = ClassifierFree(EXACT, 6.0, mixing=Rescaled(0.5))(X, 0.4, COND).mean
    torch.testing.assert_close(half, (full + mixed) / 2)


def test_projected_follows_the_difference_across_the_conditional_mean():
    plain, given = beliefs(0.4)
    everything = ClassifierFree(EXACT, 6.0, mixing=Projected(along=1.0))(X, 0.4, COND).mean
    torch.testing.assert_close(everything, plain + 6 * (given - plain))
    across = ClassifierFree(EXACT, 6.0, mixing=Projected())(X, 0.4, COND).mean - given
    torch.testing.assert_close((across * given).sum(1), torch.zeros(6).double(), atol=1e-12, rtol=0)
    # what is left out lies along the conditional mean
    rest = (5 * (given - plain) - across) / given
    torch.testing.assert_close(rest[:, 0], rest[:, 1])
    short = ClassifierFree(EXACT, 6.0, mixing=Projected(1.0, limit=0.01))(X, 0.4, COND).mean - given
    assert short.norm(dim=1).max() <= 5 * 0.01 * math.sqrt(2) + 1e-12


def test_auto_guidance_moves_away_from_the_weak_model():
    weak = bd.exact.Gaussian(torch.zeros(2).double(), torch.tensor(1.0).double()).denoiser(PROCESS)
    strong = bd.exact.Gaussian(torch.ones(2).double(), torch.tensor(0.3).double()).denoiser(PROCESS)
    bad, good = weak(X, 0.4).mean, strong(X, 0.4).mean
    torch.testing.assert_close(AutoGuidance(strong, weak, 2.5)(X, 0.4).mean, bad + 2.5 * (good - bad))
    torch.testing.assert_close(AutoGuidance(strong, weak, 1.0)(X, 0.4).mean, good)
    torch.testing.assert_close(AutoGuidance(strong, weak, 0.0)(X, 0.4).mean, bad)
    other = bd.exact.Gaussian(torch.zeros(2).double(), 1.0).denoiser(Gaussian(bd.schedule.Flow()))
    with pytest.raises(UserError, match="same process"):
        AutoGuidance(strong, other, 2.0)


def test_no_sample_is_guided_by_its_neighbours():
    for mixing in (Rescaled(), Projected(limit=0.1)):
        guided = ClassifierFree(EXACT, 4.0, mixing=mixing)
        alone = guided(X[2:3], 0.4, {"label": COND["label"][2:3]}).mean
        torch.testing.assert_close(guided(X, 0.4, COND).mean[2:3], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Interval(-1.0, 0.1, 1.0), "guidance weight"),
        (lambda: Interval(2.0, 1.0, 0.1), "low < high"),
        (lambda: Ramp(2.0, power=0.0), "power"),
        (lambda: Rows((1.0,), (1.0, 2.0)), "one for each"),
        (lambda: plus(VP, [1.0, 0.0], 2.0), "0 to 1"),
        (lambda: Rescaled(2.0), "share"),
        (lambda: Projected(limit=0.0), "positive"),
        (lambda: AutoGuidance(EXACT, EXACT, -1.0), "guidance weight"),
    ],
)
def test_mistakes_are_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
