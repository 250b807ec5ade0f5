"""A network that somebody else trained, as a teacher: restated in this library's words, then distilled."""

import pytest
import torch

import backdrift as bd
from backdrift import UserError, distillation
from backdrift.distillation import Effort, distill
from backdrift.interop import diffusers
from backdrift.interop.foreign import Convention, Entry, Foreign, Level, Restated

STD = 0.7


class Net(torch.nn.Module):
    """A small convolution that heeds what it is told."""

    classes, optional = 0, True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, told, cond):
        return self.conv(x) * (1 + told.to(x).view(-1, 1, 1, 1)).log() + 0.3 * x


def foreign(target=None, clock=None):
    convention = Convention(bd.schedule.VP(), target or bd.target.EPS(), clock or Entry(1000))
    return Foreign(Net(), convention, (1, 8, 8), 0.5).eval().requires_grad_(False)


@pytest.mark.parametrize("target", [bd.target.EPS(), bd.target.V()])
@pytest.mark.parametrize("clock", [Entry(1000), Level()])
def test_restated_network_says_the_same(target, clock):
    theirs = foreign(target, clock)
    ours = bd.Network(Restated(theirs, STD), theirs.process, bd.target.EDM_F(STD), (1, 8, 8), STD)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for t in (0.1, 0.5, 0.95):
        torch.testing.assert_close(ours(x, t).mean, theirs(x, t).mean, rtol=1e-3, atol=1e-4)
    assert all(p.requires_grad for p in ours.parameters())


def test_a_folder_from_elsewhere_is_distilled_into_a_run(tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.setattr(diffusers, "load", lambda path: foreign())
    monkeypatch.setattr(distillation, "is_folder", lambda path: path == folder)
    teacher, pictures = bd.Model(foreign(), (), folder), bd.data.digits()
    with pytest.raises(UserError, match="give pictures"):
        distill(teacher)
    effort = Effort(steps=2, batch=16, lr=1e-3)
    student = distill(teacher, pictures=pictures, effort=effort, run=tmp_path / "ours")
    assert student.denoiser.ends_path and student.sample(2, steps=2).shape == (2, 1, 8, 8)
    before, after = teacher.denoiser.net.conv.weight, student.denoiser.net.denoiser.net.conv.weight
    assert 0 < (before - after).abs().max() < 0.01  # it began at the teacher
    with pytest.raises(UserError, match="works on codes"):
        distill(bd.Model(foreign(), (), folder, decode=lambda x: x), pictures=pictures)
