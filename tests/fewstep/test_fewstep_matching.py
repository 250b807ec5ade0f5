"""Matching distributions, improved consistency training, the watch over a training, and few-step runs at the door."""

import math
from dataclasses import replace

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.fewstep import DistributionMatching, ImprovedConsistency
from backdrift.fewstep.fixed import Fixed
from backdrift.noise import Noise
from backdrift.objective.base import Samples
from backdrift.onestep import Collapse, Watch, spread
from backdrift.process import Gaussian

MEAN, VAR, SCALE = torch.tensor([0.4, -0.3]).double(), torch.tensor([0.5, 1.7]).double(), 0.6


class Net(torch.nn.Module):
    """F of the end of the flow's path of N(MEAN, VAR), or of the posterior mean, shifted."""

    def __init__(self, ends, shift=0.0):
        super().__init__()
        self.ends, self.shift = ends, torch.nn.Parameter(torch.full((), shift, dtype=torch.float64))

    def forward(self, u, w, cond=None):
        cos, sin = w.double().cos()[:, None], w.double().sin()[:, None]
        total = cos**2 * VAR + sin**2
        gain = VAR.sqrt() / total.sqrt() if self.ends else cos * VAR / total
        return (MEAN + gain * (u - cos * MEAN) - cos * u) / sin + self.shift


def network(ends, shift=0.0):
    target = bd.target.EDM_F(SCALE)
    return bd.Network(Net(ends, shift), Gaussian(bd.schedule.VP()), target, (2,), SCALE, ends_path=ends)


def samples(n):
    x0 = SCALE * (MEAN + VAR.sqrt() * torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double())
    ones, t = torch.ones(n, dtype=torch.float64), torch.linspace(0.1, 0.9, n).double()
    return Samples(x0, t, {}, Noise.of(0, n), ones, ones, t, ones)


def pull(shift, sign=1.0, fake=None):
    """The student's gradient, where the fake knows the law of the student's samples exactly."""
    student, objective = network(True, shift), DistributionMatching(whole=0.0)
    head = objective.head(network(False))
    # the shift of F moves the ends by sin w shift; at one time the made samples are N(MEAN + that, VAR)
    given = samples(400)
    given = replace(given, t=torch.full((400,), 0.7).double())
    alpha, sigma = (float(v) for v in student.process.schedule.alpha_sigma(0.7))
    moved = math.sin(math.atan2(sigma, alpha * SCALE)) * shift

    class Shifted(torch.nn.Module):
        def forward(self, u, w, cond=None):
            cos, sin = w.double().cos()[:, None], w.double().sin()[:, None]
            gain = cos * VAR / (cos**2 * VAR + sin**2)
            return (MEAN + moved + gain * (u - cos * (MEAN + moved)) - cos * u) / sin

    head.fake.net = Shifted()
    if fake is not None:
        head.fake.net = fake
    objective.losses(student, head, given).total.mean().backward()
    return sign * float(student.net.shift.grad)


def test_matching_is_at_rest_where_the_laws_agree_and_pulls_back_elsewhere():
    at_rest = pull(0.0)
    assert pull(0.3) > 100 * abs(at_rest) and pull(-0.3) < -100 * abs(at_rest)


def test_the_fake_learns_the_students_law_and_no_gradient_of_it_reaches_the_student():
    objective = DistributionMatching()
    student, head = network(True), DistributionMatching().head(network(False))
    total = objective.losses(student, head, samples(64)).total.mean()
    total.backward()
    assert head.fake.net.shift.grad is not None and head.teacher.network.net.shift.grad is None
    # at rest, with the fake at the teacher, the student has nothing to learn
    assert abs(float(student.net.shift.grad)) < 1e-9


def test_adversarial_term_moves_the_student_against_the_classifier_alone():
    torch.manual_seed(0)
    objective = DistributionMatching(adversarial=1.0)
    student, head = network(True), objective.head(network(False)).double()
    objective.losses(student, head, samples(64)).total.mean().backward()
    assert abs(float(student.net.shift.grad)) > 1e-4
    assert all(p.grad is not None for p in head.classifier.parameters())
    layer = torch.nn.Linear(3, 1)
    x = torch.ones(2, 3, requires_grad=True)
    Fixed(layer)(x).sum().backward()
    assert layer.weight.grad is None and torch.equal(x.grad, layer.weight.detach().expand(2, 3))


def test_improved_consistency_takes_neighbours_on_a_grid_that_doubles():
    objective = ImprovedConsistency(first=10, last=1280)
    progress = torch.tensor([0.0, 0.2, 0.999]).double()
    assert objective.intervals(progress).tolist() == [10, 20, 1280]
    t, r = objective.pair(torch.tensor([0.002, 1.0, 80.0]).double(), progress)
    assert float(r[0]) == pytest.approx(0.002) and float(t[2]) == pytest.approx(80.0)
    grid = [(0.002 ** (1 / 7) + i / 20 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(21)]
    above = next(i for i, value in enumerate(grid) if value >= 1.0)
    assert float(t[1]) == pytest.approx(grid[above]) and float(r[1]) == pytest.approx(grid[above - 1])
    with pytest.raises(UserError, match="first <= last"):
        ImprovedConsistency(first=20, last=10)


@pytest.fixture(scope="module")
def pictures():
    return bd.data.digits()


def test_watch_stops_what_has_collapsed_and_says_so(pictures):
    watch = Watch(pictures, steps=100, n=32)
    watch.check(10, 0.05, "one evaluation")  # at first all are alike
    watch.check(20, 0.9, "one evaluation")
    with pytest.raises(Collapse, match="collapsed by step 30 of 100: its samples in one evaluation are almost alike"):
        watch.check(30, 0.3, "one evaluation")
    with pytest.raises(Collapse, match="times as spread as the data"):
        watch.check(40, 4.0, "one evaluation")
    with pytest.raises(Collapse, match="not finite"):
        watch.check(40, math.nan, "one evaluation")
    with pytest.raises(Collapse, match="almost alike"):
        Watch(pictures, steps=1000, n=32).check(800, 0.05, "one evaluation")
    Watch(pictures, steps=100, n=32).check(100, 0.05, "one evaluation")  # too short to say
    real = pictures.split()[0].tensor()
    assert watch.spread == pytest.approx(float(real.flatten(1).std(0).square().mean().sqrt()), rel=1e-3)
    assert math.isnan(spread(torch.full((3, 1, 8, 8), math.nan)))


def test_a_collapse_stops_the_training_with_its_figures_recorded(pictures, tmp_path, monkeypatch):
    from backdrift.run import Run
    from backdrift.train.loop import train
    from backdrift.train.networks import UNetChoice
    from backdrift.train.options import for_pictures

    net = UNetChoice(width=16, multipliers=(1,), blocks=1, attention=())
    options = replace(for_pictures(pictures), steps=8, batch=8, net=net, sample_every=2, validate_every=0)
    options = replace(options, objective=bd.fewstep.MeanFlow())
    watch = Watch(pictures, steps=1000, n=16)
    train(pictures, options, run=tmp_path / "a", on_sample=watch)
    shown = [r for r in Run(tmp_path / "a").metrics() if "watched_fd" in r]
    assert [r["step"] for r in shown] == [2, 4, 6, 8] and all(math.isfinite(r["watched_fd"]) for r in shown)
    monkeypatch.setattr("backdrift.onestep.SOON", 6)
    with pytest.raises(Collapse, match="by step 6 of 8"):
        train(pictures, options, run=tmp_path / "b", on_sample=Watch(pictures, steps=8, n=16))
