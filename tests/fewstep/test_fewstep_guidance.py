"""Students that are told the guidance: what they learn, and how they are asked for it."""

import math
from dataclasses import replace

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.fewstep import ConsistencyDistillation, Halving, MidTraining, Progressive
from backdrift.fewstep.consistency import Teacher, guidance_weights
from backdrift.guide import ClassifierFree
from backdrift.noise import Noise
from backdrift.objective.base import Samples
from backdrift.process import Gaussian


class Net(torch.nn.Module):
    """F that a label shifts, and that knows how far a student must lie for the weight that it is told."""

    told = ("guidance",)

    def __init__(self, student):
        super().__init__()
        self.student, self.bias = student, torch.nn.Parameter(torch.zeros(()).double())

    def forward(self, u, w, cond=None):
        cond = cond or {}
        shift = torch.zeros(len(u)).double()
        if "label" in cond:
            shift = cond["label"].double() - 1
        if self.student and "guidance" in cond:
            shift = shift * cond["guidance"].double().tan()
        return -0.5 * u + 0.3 * (shift + self.bias)[:, None]


def network(student):
    told = ("guidance",) if student else ()
    return bd.Network(Net(student), Gaussian(bd.schedule.VP()), bd.target.EDM_F(0.6), (2,), 0.6, told=told)


def samples(n=48):
    x0 = 0.6 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double()
    ones, place = torch.ones(n, dtype=torch.float64), torch.linspace(0.01, 0.99, n).double()
    return Samples(x0, place, {"label": torch.arange(n) % 3}, Noise.of(0, n), ones, ones, place, ones)


def test_weights_are_log_uniform_between_the_two():
    n = 20_000
    ones = torch.ones(n).double()
    many = replace(samples(), t=ones, noise=Noise.of(3, n))
    weights = guidance_weights(MidTraining(guidance=1.0, guidance_to=4.0), many)
    assert float(weights.min()) >= 1 and float(weights.max()) <= 4
    place = weights.log() / math.log(4)
    assert abs(float(place.mean()) - 0.5) < 4.5 / math.sqrt(12 * n)
    assert guidance_weights(MidTraining(guidance=2.0), many) == 2.0


def test_teacher_takes_a_weight_for_each_sample():
    teacher, given = Teacher(network(False)), samples(4)
    weights = torch.tensor([1.0, 1.5, 2.0, 4.0]).double()
    found = teacher.guided(weights, given.cond)(given.x0, 0.4, given.cond).mean
    for i, w in enumerate(weights.tolist()):
        one = ClassifierFree(network(False), w)(given.x0, 0.4, given.cond).mean[i]
        torch.testing.assert_close(found[i], one)


def test_student_that_heeds_the_weight_has_nothing_to_learn_and_one_that_does_not_has():
    """The net's shift is linear in the label, so the guided teacher is the same net with the label scaled."""

    def loss(student, objective, teacher=None):
        head = objective.head(teacher or network(False))
        return float(objective.losses(student, head, samples()).total.detach().mean())

    objective, deaf = Halving(4, 1.0, 4.0), network(True)
    deaf.net.student = False
    heeds = loss(network(True), objective)
    assert heeds < 0.25 * loss(deaf, objective)  # two short steps are not quite a long one
    # the same teacher, told its weight in place of being guided
    assert loss(network(True), replace(objective, heeded=True), network(True)) == pytest.approx(heeds, rel=1e-5)
    assert objective.told == ConsistencyDistillation(guidance_to=4.0).told == ("guidance",)
    assert MidTraining().told == ()


def test_progressive_stages_after_the_first_have_a_teacher_that_heeds():
    stages = Progressive(1.0, first=8, guidance_to=3.0).stages(0.5, 2)
    assert [(s.objective.steps, s.objective.heeded, s.objective.guidance_to) for s in stages] == [
        (4, False, 3.0),
        (2, True, 3.0),
    ]
    plain = Progressive(2.0, first=8).stages(0.5, 2)
    assert [(s.objective.guidance, s.objective.told) for s in plain] == [(2.0, ()), (1.0, ())]


def test_a_model_passes_the_wanted_weight_on():
    model = bd.Model(network(True), ["a", "b", "c"])
    low, high = (model.sample(2, label=[0, 2], guidance=w, steps=3, seed=1) for w in (1.0, 3.0))
    gap = (high - low)[:, 0]
    assert gap[0] < -0.1 and gap[1] > 0.1  # away from the middle, which is where no label leads
    torch.testing.assert_close(low, model.sample(2, label=[0, 2], steps=3, seed=1))


def test_ranges_that_are_none_are_refused():
    for low, high in ((2.0, 1.0), (0.0, 2.0)):
        with pytest.raises(UserError, match="a range of it rises"):
            MidTraining(guidance=low, guidance_to=high)
