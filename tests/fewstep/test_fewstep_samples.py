"""Students at work: jumps at an exact consistency map, and the objectives that need a whole path of the teacher."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.fewstep import EasyConsistency, Halving, MidTraining, Reflow
from backdrift.fewstep.methods import Easy, Progressive
from backdrift.fewstep.trajectory import path_of
from backdrift.noise import Noise
from backdrift.objective.base import Samples
from backdrift.process import Gaussian
from backdrift.sample.default import default_grid, default_solver

MEAN, VAR, SIGMA_DATA = torch.tensor([0.4, -0.3]).double(), torch.tensor([0.5, 1.7]).double(), 0.6
SCHEDULES = [bd.schedule.VP(), bd.schedule.Flow(), bd.schedule.EDM()]


class Net(torch.nn.Module):
    """F of the end of the flow's path (or of the posterior mean) of N(MEAN, VAR) in units of SIGMA_DATA."""

    def __init__(self, ends):
        super().__init__()
        self.ends, self.shift = ends, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, u, w, cond=None):
        cos, sin = w.double().cos()[:, None], w.double().sin()[:, None]
        total = cos**2 * VAR + sin**2
        gain = VAR.sqrt() / total.sqrt() if self.ends else cos * VAR / total
        return (MEAN + gain * (u - cos * MEAN) - cos * u) / sin + self.shift


def network(ends, schedule, ends_path=None):
    target = bd.target.EDM_F(SIGMA_DATA)
    return bd.Network(Net(ends), Gaussian(schedule), target, (2,), SIGMA_DATA, ends_path=ends_path or ends)


def samples(n, t, place=None):
    x0 = SIGMA_DATA * (MEAN + VAR.sqrt() * torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double())
    ones = torch.ones(n, dtype=torch.float64)
    return Samples(x0, t, {}, Noise.of(0, n), ones, ones, ones * 0.5 if place is None else place, ones)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_jumps_at_the_exact_map_have_the_law_of_the_data(schedule, steps):
    n = 20_000
    student = network(True, schedule)
    start = bd.exact.Gaussian(SIGMA_DATA * MEAN, SIGMA_DATA**2 * VAR).denoiser(Gaussian(schedule)).draw(n, 1.0)
    x = bd.sample(student, start, solver=bd.solvers.Jump(), steps=steps, seed=3) / SIGMA_DATA
    assert ((x.mean(0) - MEAN) / (VAR / n).sqrt()).abs().max() < 4.5
    assert ((x.var(0) / VAR - 1) / math.sqrt(2 / n)).abs().max() < 4.5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_jump_is_the_answer_noised_again(schedule):
    t = [1.0, 0.6, 0.0]
    plan, x1 = bd.solvers.Jump().plan(schedule, t), torch.tensor([[0.3, -2.0]]).double()
    student, noise = network(True, schedule), Noise.of(5, 1)
    seen = []
    plan.run(student, x1, None, noise, lambda step: seen.append(step))
    xi = (seen[1].state - schedule.alpha_sigma(0.6)[0] * seen[0].mean) / schedule.alpha_sigma(0.6)[1]
    other = []
    plan.run(student, x1 + 7, None, noise, lambda step: other.append(step))
    again = (other[1].state - schedule.alpha_sigma(0.6)[0] * other[0].mean) / schedule.alpha_sigma(0.6)[1]
    torch.testing.assert_close(xi, again)  # the noise does not depend on the state
    ddim = bd.solvers.DDIM().plan(schedule, t).run(student, x1)
    torch.testing.assert_close(bd.solvers.Jump(0.0).plan(schedule, t).run(student, x1), ddim)


def test_students_are_sampled_by_jumps():
    assert isinstance(default_solver(network(True, SCHEDULES[0])), bd.solvers.Jump)
    assert isinstance(default_solver(bd.guide.Reward(network(True, SCHEDULES[0]), torch.sum)), bd.solvers.Jump)
    assert not isinstance(default_solver(network(False, SCHEDULES[0])), bd.solvers.Jump)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mid_training_is_over_at_the_end_of_the_path(schedule):
    def loss(student):
        objective = MidTraining(steps=24)
        head = objective.head(network(False, schedule))
        return float(objective.losses(student, head, samples(48, torch.zeros(48).double())).total.detach().mean())

    assert loss(network(True, schedule)) < 2e-3 * loss(network(False, schedule))


def test_path_starts_at_the_noise_and_ends_in_the_sample():
    teacher, x1 = network(False, bd.schedule.VP()), torch.tensor([[0.3, -2.0]]).double()
    times, states, ends = path_of(teacher, x1, {}, 30)
    assert float(times[0]) == 1 and len(times) == 30 and torch.equal(states[0], x1)
    exact = bd.exact.Gaussian(SIGMA_DATA * MEAN, SIGMA_DATA**2 * VAR).denoiser(teacher.process)
    torch.testing.assert_close(ends, exact.flow(x1, 1.0, 0.0), atol=2e-3, rtol=0)
    torch.testing.assert_close(states[20], exact.flow(x1, 1.0, float(times[20])), atol=2e-3, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("place", [0.01, 0.4, 0.99])
def test_one_ddim_step_with_the_target_is_two_of_the_teacher(schedule, place):
    """At the loss's minimum the student's step lands where two teacher steps do; elsewhere the loss is their gap."""
    objective, n = Halving(4), 5
    teacher = network(False, schedule)
    head = objective.head(teacher)
    given = samples(n, torch.zeros(n).double(), torch.full((n,), place).double())
    student = network(False, schedule)
    found = objective.losses(student, head, given).total
    grid = default_grid(teacher).times(schedule, 8).tolist()
    row = 2 * min(int(place * 4), 3)
    xt = student.process.corrupt(given.x0, torch.full((n,), grid[row]).double(), given.noise)
    two = bd.solvers.DDIM().plan(schedule, grid[row : row + 3]).run(teacher, xt)
    one = bd.solvers.DDIM().plan(schedule, [grid[row], grid[row + 2]])
    keep = one.run(Fixed(student, torch.zeros(n, 2).double()), xt)
    gain = one.run(Fixed(student, torch.ones(n, 2).double()), xt) - keep
    target = (two - keep) / gain
    (alpha, sigma) = (float(v) for v in schedule.alpha_sigma(grid[row]))
    weight = max((alpha / sigma * SIGMA_DATA) ** 2, 1) / SIGMA_DATA**2
    expected = weight * (student(xt, grid[row]).mean - target).square().mean(1)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-5, atol=1e-10)


class Fixed(bd.Denoiser):
    """Answers the same, whatever it is asked."""

    def __init__(self, like, answer):
        super().__init__()
        self.process, self.event_shape, self.answer = like.process, like.event_shape, answer

    def forward(self, xt, t, cond=None):
        from backdrift.posterior import TensorPosterior

        return TensorPosterior(self.answer)


def test_reflow_is_denoising_of_the_teachers_pairs():
    schedule, n, t = bd.schedule.VP(), 6, torch.linspace(0.2, 0.9, 6).double()
    objective, teacher = Reflow(steps=30), network(False, bd.schedule.VP())
    student, given = network(False, schedule), samples(n, t)
    found = objective.losses(student, objective.head(teacher), given).total
    x1 = teacher.process.corrupt(given.x0, 1.0, given.noise)
    ends = bd.exact.Gaussian(SIGMA_DATA * MEAN, SIGMA_DATA**2 * VAR).denoiser(teacher.process).flow(x1, 1.0, 0.0)
    (a1, s1), (alpha, sigma) = schedule.alpha_sigma(1.0), (v[:, None] for v in schedule.alpha_sigma(t))
    xt = alpha * ends + sigma * (x1 - a1 * ends) / s1
    gap = (student(xt, t).mean - ends).square().mean(1)
    torch.testing.assert_close(found, (student.target.weight(schedule, t) * gap).to(found), rtol=2e-2, atol=1e-4)


def test_methods_share_out_the_steps():
    for method, names in ((Easy(), ["paths", "tuning"]), (Easy(guidance=2.0), ["paths"]), (Easy(0.0), ["tuning"])):
        stages = method.stages(0.5, 2)
        assert [stage.name for stage in stages] == names
        assert sum(stage.share for stage in stages) == pytest.approx(1)
    halvings = Progressive(first=16, guidance=2.0).stages(0.5, 2)
    assert [stage.objective for stage in halvings] == [Halving(8, 2.0), Halving(4), Halving(2)]
    with pytest.raises(UserError, match="no fewer"):
        Progressive(first=2).stages(0.5, 2)
    with pytest.raises(UserError, match="base > 1"):
        EasyConsistency(base=1.0)
