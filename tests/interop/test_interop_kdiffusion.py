"""k-diffusion's D(x, sigma) both ways: against closed forms, with a sampler of theirs written by hand."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch

import backdrift as bd

PAGES = Path(__file__).parents[2] / "docs"
MEAN, VARIANCE = torch.tensor([[0.5, -1.0], [0.04, 1.0]], dtype=torch.float64)
GAUSSIAN = bd.exact.Gaussian(MEAN, VARIANCE)


def closed(x, sigma, class_cond=None):
    """E[x_0 | x_0 + sigma eps = x] for independent Gaussians."""
    mean, variance = MEAN.to(x), VARIANCE.to(x)
    share = variance / (variance + sigma[:, None].to(x) ** 2)
    shift = 0 if class_cond is None else class_cond[:, None]
    return mean + share * (x - mean) + shift


def exact(schedule):
    return GAUSSIAN.denoiser(bd.process.Gaussian(schedule))


@pytest.mark.parametrize("schedule", [bd.schedule.EDM(), bd.schedule.VE(), bd.schedule.VP()], ids=repr)
def test_theirs_in(schedule):
    denoiser = bd.interop.kdiffusion.load(closed, (2,), schedule=schedule)
    t = torch.tensor([0.1, 0.4, 0.8, 1.0])
    x = denoiser.process.corrupt(GAUSSIAN.draw(4).float(), t, bd.Noise.of(0, 4))
    expected = exact(schedule)(x.double(), t).mean.float()
    torch.testing.assert_close(denoiser(x, t).mean, expected, rtol=1e-4, atol=1e-4)
    # a whole run ends where the exact flow does
    x1 = denoiser.process.prior(torch.empty(16, 2), bd.Noise.of(0, 16))
    made = bd.sample(denoiser, x1, steps=40)
    torch.testing.assert_close(made.double(), exact(schedule).flow(x1.double(), 1.0, 0.0), rtol=0, atol=5e-3)


def test_conditions_go_by_their_names():
    denoiser = bd.interop.kdiffusion.load(closed, (2,))
    x, label = torch.randn(3, 2), torch.tensor([0.0, 1.0, 5.0])
    shift = denoiser(x, 0.5, {"label": label}).mean - denoiser(x, 0.5).mean
    torch.testing.assert_close(shift, label[:, None].expand(3, 2))
    renamed = bd.interop.kdiffusion.load(closed, (2,), names={"text": "class_cond"})
    torch.testing.assert_close(renamed(x, 0.5, {"text": label}).mean, denoiser(x, 0.5, {"label": label}).mean)
    with pytest.raises(bd.UserError, match="takes text, not 'label'"):
        renamed(x, 0.5, {"label": label})


@pytest.mark.parametrize("schedule", [bd.schedule.Cosine(), bd.schedule.EDM(), bd.schedule.Flow()], ids=repr)
def test_ours_out(schedule):
    D = bd.interop.kdiffusion.export(exact(schedule))
    x, sigma = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.05, 0.5, 3.0, 40.0])
    torch.testing.assert_close(D(x, sigma), closed(x, sigma))
    torch.testing.assert_close(D(x, 0.5), closed(x, torch.full((4,), 0.5)))
    # a Euler sampler in their form ends where the exact flow does
    levels = (80 ** (1 / 7) + torch.linspace(0, 1, 400) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    x = x1 = 80 * torch.randn(4, 2, dtype=torch.float64)
    for now, then in itertools.pairwise(levels):
        x = x + (x - D(x, now * torch.ones(4))) / now * (then - now)
    torch.testing.assert_close(x, exact(bd.schedule.EDM()).flow(x1, 1.0, 0.0), rtol=0, atol=2e-2)


def test_there_and_back():
    denoiser = bd.interop.kdiffusion.load(closed, (2,))
    D, x = bd.interop.kdiffusion.export(denoiser), torch.randn(3, 2)
    torch.testing.assert_close(D(x, torch.tensor([0.1, 1.0, 9.0])), closed(x, torch.tensor([0.1, 1.0, 9.0])))


class EDMNet(torch.nn.Module):
    img_resolution, img_channels, label_dim, sigma_min, sigma_max, sigma_data = 4, 1, 3, 0.0, 60.0, 0.3

    def forward(self, x, sigma, class_labels=None):
        assert class_labels.shape == (len(x), 3)
        number = class_labels @ torch.tensor([1.0, 2.0, 3.0])
        return x * 0 + (number + sigma)[:, None, None, None]


def test_networks_of_edm():
    denoiser = bd.interop.kdiffusion.load_edm(EDMNet())
    assert denoiser.event_shape == (1, 4, 4) and denoiser.sigma_data == 0.3
    assert denoiser.process.schedule == bd.schedule.EDM(0.002, 60.0)
    x = torch.zeros(3, 1, 4, 4)
    said = denoiser(x, 1.0, {"label": torch.tensor([2, 0, 3])}).mean[:, 0, 0, 0]
    torch.testing.assert_close(said, torch.tensor([63.0, 61.0, 60.0]))
    torch.testing.assert_close(denoiser(x, 1.0).mean[:, 0, 0, 0], torch.full((3,), 60.0))
    guided = bd.guide.ClassifierFree(denoiser, 2.0)(x, 1.0, {"label": torch.tensor([0, 1, 2])}).mean[:, 0, 0, 0]
    torch.testing.assert_close(guided, torch.tensor([62.0, 64.0, 66.0]))
    # and as one of EDM's again: unit vectors for labels, zeros for none
    D = bd.interop.kdiffusion.export(denoiser)
    marks = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(D(x, torch.tensor(7.0), marks)[:, 0, 0, 0], torch.tensor([10.0, 8.0, 7.0]))
    assert abs(D.sigma_min - 0.002) < 1e-9 and abs(D.sigma_max - 60) < 1e-6 and D.round_sigma(5.0) == 5.0


def test_mistakes():
    with pytest.raises(bd.UserError, match=r"alpha\(1\) = 0"):
        bd.interop.kdiffusion.load(closed, (2,), schedule=bd.schedule.Flow())
    with pytest.raises(bd.UserError, match="no img_resolution"):
        bd.interop.kdiffusion.load_edm(torch.nn.Identity())
    denoiser = bd.interop.kdiffusion.load_edm(EDMNet())
    with pytest.raises(bd.UserError, match="Labels are one of 0"):
        denoiser(torch.zeros(2, 1, 4, 4), 0.5, {"label": torch.tensor([0, 4])})
    short = bd.interop.kdiffusion.load(lambda x, sigma: x[:, :1], (2,))
    with pytest.raises(bd.UserError, match=r"returned \(3, 1\)"):
        short(torch.randn(3, 2), 0.5)


def test_the_page_says_what_happens():
    spec = importlib.util.spec_from_file_location("execute_page", PAGES / "execute.py")
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    page = (PAGES / "interop.md").read_text(encoding="utf-8")
    assert docs.execute(page) == page
