"""Bits per dimension: offsets and dequantisation against exact bin masses, and what does not change the figure."""

import math
from dataclasses import dataclass

import pytest
import torch
from scipy import stats

import backdrift as bd
from backdrift.errors import UserError
from backdrift.likelihood import ByBound, ByFlow, ByMmse, Dequantised, LogLikelihood, score

LAW = bd.exact.Gaussian(torch.full((1, 2, 2), -0.1), 0.2**2)
DENOISER = LAW.denoiser(bd.process.Gaussian(bd.schedule.Cosine()))
PIXELS = (((LAW.draw(24, seed=0).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1).float()
METHODS = [ByBound(30), ByFlow(12), ByMmse(30)]


def exact_bits(finest):
    """-log2 of each pixel's bin under the law with noise of `finest`, averaged."""
    law = stats.norm(-0.1, math.hypot(0.2, finest))
    x = PIXELS.double().numpy()
    return float(-torch.from_numpy(law.cdf(x + 1 / 255) - law.cdf(x - 1 / 255)).log2().mean())


def test_bits_of_a_known_number():
    found = LogLikelihood(torch.full((2, 1, 2, 2), -math.log(2.0)), torch.zeros(2))
    assert found.bits.tolist() == pytest.approx([1.0, 1.0]) and found.dimensions == 4


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_bins_mass(method):
    found = score(DENOISER, PIXELS, method)
    exact = exact_bits(method.finest)
    # the bound has a decoder as wide as the last noise, and pays for it; densities move by their draws alone
    slack = 0.35 if isinstance(method, ByBound) else 0.02
    assert exact - 0.01 - 4 * found.own < found.bits < exact + slack + 4 * found.own
    assert found.n == 24 and len(found.pictures) == 24
    assert sum(found.pictures) / 24 == pytest.approx(found.bits)
    spread = torch.tensor(found.pictures).std() / math.sqrt(24)
    assert found.error == pytest.approx(float(spread)) and found.own <= found.error
    if found.terms:
        assert sum(found.terms.values()) == pytest.approx(found.bits)


def test_dequantisation_fills_the_bin():
    seen = []

    @dataclass(frozen=True)
    class Listen(Dequantised):
        finest: float = 0.01
        what = "nothing"

        def density(self, denoiser, x, first, cond, noise):
            seen.append(x)
            return LogLikelihood(torch.zeros_like(x).double(), torch.zeros(len(x)))

    found = score(DENOISER, PIXELS, Listen(), batch=24)
    shift = seen[0] - PIXELS
    assert 0.95 / 255 < float(shift.abs().max()) < 1.0001 / 255
    assert float(shift.std()) == pytest.approx(2 / 255 / math.sqrt(12), rel=0.1)
    assert found.bits == pytest.approx(math.log2(127.5))


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_does_not_matter(method):
    whole, parts = (score(DENOISER, PIXELS[:7], method, batch=b, seed=3) for b in (7, 3))
    assert whole.pictures == pytest.approx(parts.pictures, abs=1e-5)
    assert whole.pictures != pytest.approx(score(DENOISER, PIXELS[:7], method, seed=4).pictures, abs=1e-5)


def test_progress_and_words():
    seen = []
    found = score(DENOISER, PIXELS[:5], ByBound(4), batch=2, on_step=lambda *news: seen.append(news))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert "5 pictures" in found.lines()[-1] and "no dequantisation" in found.lines()[-1]
    assert "uniform dequantisation" in ByFlow().definition and found.to_dict()["pictures"] == list(found.pictures)


def test_mistakes():
    for x, method, words in (
        (PIXELS[:1], ByBound(), "at least 2 pictures"),
        (PIXELS + 0.001, ByFlow(), "256 levels"),
        (PIXELS, ByMmse(finest=0.0), "finest noise"),
        (PIXELS.repeat(1, 3, 1, 1), ByMmse(), "knows events"),
    ):
        with pytest.raises(UserError, match=words):
            score(DENOISER, x, method)
    with pytest.raises(UserError, match="at least one picture"):
        score(DENOISER, PIXELS, ByBound(), batch=0)
