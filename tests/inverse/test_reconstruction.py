"""Reconstructions of the exact posterior are calibrated, and of no other; PSNR and SSIM by their definitions."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.evaluate.fidelity import psnr, ssim
from backdrift.exact import Gaussian
from backdrift.inverse import Exact, Linear, Twisted
from backdrift.inverse.reconstruction import Reconstruction, Told, reconstruct
from backdrift.process import Gaussian as Process
from backdrift.report.reconstruction import figures, reconstruction_page


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_draws_of_the_posterior_cover_err_and_fit_as_they_should():
    size, measured = 400, 200
    prior = Gaussian(torch.zeros(1, 20, 20).double(), torch.tensor(1.0).double())
    measurement = Linear(random(measured, size, seed=2) / math.sqrt(size), 0.3, (1, 20, 20))
    truth = prior.draw(1, seed=5)[0]
    y = measurement.draw(truth[None], bd.Noise.of(9, 1))[0]
    made = reconstruct(prior.denoiser(Process(bd.schedule.VP())), Exact(), measurement, y, 19)
    inside, nominal = made.covered(truth)
    assert nominal == pytest.approx(0.9)
    assert float(inside.double().mean()) == pytest.approx(0.9, abs=0.06)
    assert made.ratio(truth) == pytest.approx(2, abs=0.25)
    assert made.consistency() == pytest.approx(1, abs=0.25)
    # half the spread covers less, and its draws err less than twice as much
    narrow = Reconstruction(made.mean + (made.samples - made.mean) / 2, measurement, y)
    assert float(narrow.covered(truth)[0].double().mean()) < 0.75
    assert narrow.ratio(truth) < 1.5
    rows = dict(figures(made, truth))
    assert len(rows) == 8 and "truth" not in " ".join(name for name, _ in figures(made, None))
    text = reconstruction_page(made, truth, "Title", "words", ["next"])
    assert "<h1>Title" in text and "next" in text and "data:image/png" in text


def test_batches_change_nothing():
    prior = Gaussian(torch.zeros(3).double(), torch.tensor(1.0).double())
    denoiser, measurement = prior.denoiser(Process(bd.schedule.VP())), Linear(0.4 * random(2, 3), 0.3)
    whole, parts = (
        reconstruct(denoiser, Twisted(count=2), measurement, torch.ones(2).double(), 5, steps=4, batch=batch)
        for batch in (5, 2)
    )
    torch.testing.assert_close(whole.samples, parts.samples)
    with pytest.raises(UserError, match="at least 2"):
        reconstruct(denoiser, Twisted(), measurement, torch.ones(2), 1)


def test_a_bound_condition_is_the_condition():
    atoms = bd.exact.Atoms(random(6, 3), labels=torch.tensor([0, 0, 1, 1, 2, 2]))
    denoiser, x = atoms.denoiser(Process(bd.schedule.VP())), random(4, 3, seed=1)
    told = Told(denoiser, {"label": torch.tensor([1])})
    torch.testing.assert_close(told(x, 0.4).mean, denoiser(x, 0.4, {"label": torch.ones(4).long()}).mean)


def test_psnr_and_ssim():
    truth, x = random(2, 1, 16, 16) * 0.3, random(2, 1, 16, 16, seed=1) * 0.3
    torch.testing.assert_close(psnr(truth + 0.1, truth), torch.full((2,), 10 * math.log10(4 / 0.01)).double())
    torch.testing.assert_close(ssim(truth, truth), torch.ones(2).double())
    # one window, by the formula
    small, other = truth[:1, :, :11, :11], x[:1, :, :11, :11]
    place = torch.arange(11.0).double() - 5
    w = torch.exp(-(place[:, None] ** 2 + place[None] ** 2) / 4.5)
    w = w / w.sum()
    a, b = (w * small).sum(), (w * other).sum()
    va, vb, ab = (w * (small - a) ** 2).sum(), (w * (other - b) ** 2).sum(), (w * (small - a) * (other - b)).sum()
    c, d = 0.02**2, 0.06**2
    expected = (2 * a * b + c) * (2 * ab + d) / ((a**2 + b**2 + c) * (va + vb + d))
    torch.testing.assert_close(ssim(small, other)[0], expected)
    assert torch.isfinite(ssim(truth[..., :8, :8], x[..., :8, :8])).all()
