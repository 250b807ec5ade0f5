"""Every weight against the form that its paper gives for its target, and the bound's against its integral."""

import math

import pytest
import torch

from backdrift import objective as obj
from backdrift import schedule as sch
from backdrift import target as tgt
from backdrift.config import from_config, to_config
from backdrift.errors import UserError

T = torch.linspace(0.03, 0.97, 12, dtype=torch.float64)
AREA = 0.1 * T + 19.9 * T**2 / 2  # of VP's beta, from its definition
BAR = (-AREA).exp()  # DDPM's alpha-bar
SNR = BAR / (1 - BAR)
SIGMA = ((1 - BAR) / BAR).sqrt()  # EDM's sigma

# the factor of the square error of x_0, of eps and of v, as the papers write them
PAPERS = [
    (obj.Simple(), lambda: (torch.ones_like(T), torch.ones_like(T), torch.ones_like(T))),
    (
        obj.TruncatedSNR(),
        lambda: (SNR.clamp_min(1), (1 / SNR).clamp_min(1), SNR.clamp_min(1) / (SNR + 1)),
    ),
    (
        obj.MinSNR(5.0),
        lambda: (SNR.clamp_max(5), (5 / SNR).clamp_max(1), torch.minimum(SNR, 5 + 0 * SNR) / (SNR + 1)),
    ),
    (
        obj.SoftMinSNR(4.0),  # 1 / (sigma^2 + 1 / gamma)
        lambda: (1 / (SIGMA**2 + 0.25), SIGMA**2 / (SIGMA**2 + 0.25), (1 - BAR) / (SIGMA**2 + 0.25)),
    ),
    (
        obj.P2(0.5, 1.0),
        lambda: (SNR * (1 - BAR).sqrt(), (1 + SNR) ** -0.5, BAR * (1 - BAR).sqrt()),
    ),
    (
        obj.EDM(0.6),
        lambda: tuple((SIGMA**2 + 0.36) / (SIGMA * 0.6) ** 2 * c for c in (1, SIGMA**2, 1 - BAR)),
    ),
    (
        obj.Bound(),  # beta / (2 sigma^2) for eps: the limit of Ho et al. 2020, Eq. 12, per unit of time
        lambda: tuple((0.1 + 19.9 * T) / (2 * (1 - BAR)) * c for c in (SNR, 1, BAR)),
    ),
]


@pytest.mark.parametrize("weight, paper", PAPERS, ids=lambda w: type(w).__name__)
def test_weights_are_those_of_the_papers_for_every_target(weight, paper):
    # on VP |x_0 error|^2 = |eps error|^2 (1 - bar) / bar = |v error|^2 (1 - bar)
    ratios = (torch.ones_like(T), (1 - BAR) / BAR, 1 - BAR)
    for target, ratio, expected in zip((tgt.X0(), tgt.EPS(), tgt.V()), ratios, paper(), strict=True):
        torch.testing.assert_close(weight(sch.VP(), target, T) * ratio, expected, rtol=1e-9, atol=1e-12)
    assert from_config(to_config(weight)) == weight


def test_only_the_simple_weight_knows_the_target():
    for weight, _ in PAPERS[1:]:
        assert torch.equal(weight(sch.Flow(), tgt.VELOCITY(), T), weight(sch.Flow(), tgt.X0(), T))
    assert not torch.equal(obj.Simple()(sch.Flow(), tgt.VELOCITY(), T), obj.Simple()(sch.Flow(), tgt.X0(), T))


@pytest.mark.parametrize("schedule", [sch.EDM(), sch.VP(), sch.Flow()], ids=lambda s: type(s).__name__)
def test_edm_is_the_plain_error_of_its_own_target(schedule):
    torch.testing.assert_close(obj.EDM(0.3)(schedule, tgt.X0(), T), tgt.EDM_F(0.3).weight(schedule, T))


@pytest.mark.parametrize(
    "law", [obj.Uniform(), obj.Angle(0.5), obj.LogitNormal(0.2, 1.3), obj.LogNormalSigma(-0.5, 2.0)]
)
@pytest.mark.parametrize("schedule", [sch.VP(), sch.Flow(), sch.Cosine()], ids=lambda s: type(s).__name__)
def test_the_bound_is_the_integral_of_the_error_whatever_the_times(schedule, law):
    # on Gaussian data of variance v: int g v / (1 + v g) dg / 2 = log(1 + v g) / 2 between the ends
    v, n = 0.3, 400_000
    t = law.quantile((torch.arange(n, dtype=torch.float64) + 0.5) / n, schedule)
    inside = (t > 0.05) & (t < 0.9)
    t = t[inside]
    alpha, sigma = schedule.alpha_sigma(t)
    error = v * sigma**2 / (sigma**2 + alpha**2 * v)
    found = (obj.Bound()(schedule, tgt.X0(), t) / law.density(t, schedule) * error).sum() / n
    g = [float(a / s) ** 2 for a, s in (schedule.alpha_sigma(time) for time in (0.05, 0.9))]
    assert float(found) == pytest.approx((math.log1p(v * g[0]) - math.log1p(v * g[1])) / 2, rel=1e-3)


def test_constants_that_make_no_weight_are_refused():
    for make, words in (
        (lambda: obj.MinSNR(0.0), "positive gamma"),
        (lambda: obj.SoftMinSNR(-1.0), "positive gamma"),
        (lambda: obj.EDM(0.0), "positive sigma_data"),
        (lambda: obj.P2(k=0.0), "positive k"),
        (lambda: obj.P2(gamma=-1.0), "gamma >= 0"),
    ):
        with pytest.raises(UserError, match=words):
            make()
