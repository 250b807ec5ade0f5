"""Tuning: the table says what the plan says, the search finds the best chain, the result is better on fresh noises."""

import itertools

import pytest
import torch
from cases import GaussianData

import backdrift as bd
from backdrift.exact import Mixture
from backdrift.guide import ClassifierFree
from backdrift.noise import Noise
from backdrift.process import Gaussian
from backdrift.sample.default import default_grid, default_solver
from backdrift.sample.ode import DPMpp
from backdrift.sample.plan import Plan
from backdrift.sample.sde import DDPM
from backdrift.sample.search import DISCOUNT, cheapest, searched_grid
from backdrift.sample.tune import Effort, Error, Table, tune, tuned
from backdrift.schedule import EDM, VP, Cosine, Flow

LITTLE = Effort(noises=256, batch=128, steps=100)


def data(labels=None):
    means = torch.tensor([[1.0, 0.0], [-0.8, 0.9], [0.1, -1.1]], dtype=torch.float64)
    return Mixture(torch.tensor([1.0, 2.0, 3.0]), means, 0.02, labels)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), EDM(), Flow()], ids=lambda s: s.kind)
@pytest.mark.parametrize("solver", [default_solver(GaussianData(VP())), DPMpp(2)], ids=repr)
def test_table_is_the_plan(schedule, solver):
    denoiser = data().denoiser(Gaussian(schedule))
    x1 = denoiser.process.prior(torch.empty(8, 2, dtype=torch.float64), Noise.of(0, 8))
    plan = solver.plan(schedule, default_grid(denoiser).times(schedule, 6))
    want = plan.run(denoiser, x1)
    assert torch.allclose(Table.of(plan).run(denoiser, x1, None), want, rtol=1e-9, atol=1e-9)
    assert torch.allclose(Table.of(plan).plan().run(denoiser, x1), want, rtol=1e-9, atol=1e-9)


def test_table_has_gradients_in_all_it_can_move():
    denoiser = data().denoiser(Gaussian(VP()))
    plan = default_solver(denoiser).plan(VP(), default_grid(denoiser).times(VP(), 4))
    table, x1 = Table.of(plan), torch.randn(8, 2, dtype=torch.float64)
    for moved in (table.gaps, table.sums, table.gains):
        moved.requires_grad_()
    table.run(denoiser, x1, None).square().sum().backward()
    assert bool(table.gaps.grad.isfinite().all()) and bool((table.gaps.grad != 0).all())
    assert torch.equal(table.sums.grad != 0, torch.ones_like(table.sums).tril(-1).bool())
    # the gap's gradient by finite differences
    with torch.no_grad():
        shifted = [Table(plan, table.gaps.detach().clone(), table.sums, table.gains) for _ in range(2)]
        for one, h in zip(shifted, (1e-5, -1e-5), strict=True):
            one.gaps[1] += h
        low, high = (one.run(denoiser, x1, None).square().sum() for one in reversed(shifted))
    assert float((high - low) / 2e-5) == pytest.approx(float(table.gaps.grad[1]), rel=1e-4)


def test_cheapest_chain_by_brute_force():
    generator = torch.Generator().manual_seed(0)

    def total(chain):
        return sum(DISCOUNT**k * float(cost[i, j]) for k, (i, j) in enumerate(itertools.pairwise(chain)))

    for n in (1, *[4] * 20):
        cost = 0.5 + torch.rand(9, 9, generator=generator, dtype=torch.float64)
        cost[torch.ones(9, 9).tril().bool()] = torch.inf
        chains = [[0, *inner, 8] for inner in itertools.combinations(range(1, 8), n - 1)]
        assert cheapest(cost, n) == min(chains, key=total)


def test_searched_grid_is_a_grid():
    denoiser = data().denoiser(Gaussian(Flow()))
    x1 = torch.randn(16, 2, dtype=torch.float64)
    grid = searched_grid(denoiser, x1, 5, fine=20)
    times = grid.times(Flow(), 5)
    assert len(times) == 6 and bool((times.diff() < 0).all()) and (float(times[0]), float(times[-1])) == (1.0, 0.0)
    with pytest.raises(bd.UserError):
        grid.times(Flow(), 6)


@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=lambda s: s.kind)
def test_tuned_plan_is_better_on_noises_of_the_tests_own(schedule, tmp_path):
    denoiser = data().denoiser(Gaussian(schedule))
    found = tuned(denoiser, 4, effort=LITTLE)
    assert found.improved and found.plan.evaluations == 4
    x1 = denoiser.process.prior(torch.empty(1024, 2, dtype=torch.float64), Noise.of(77, 1024))
    end = denoiser.flow(x1, 1.0, 0.0, steps=60)
    found.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    after = Error.of(plan.run(denoiser, x1), end)
    for name, rival in found.hand_made.items():
        before = Error.of(rival.run(denoiser, x1), end)
        assert after.median < 0.8 * before.median and after.rms < before.rms, name
    assert any("tuned" in line for line in found.lines())


def test_never_worse_than_hand_made():
    """A rate that destroys the plan: the best hand-made one comes back, and the result says so."""
    denoiser = data().denoiser(Gaussian(Flow()))
    found = tuned(denoiser, 4, effort=Effort(noises=64, batch=32, steps=5, rate=1.0))
    assert not found.improved and found.plan is found.hand_made[found.rival]
    assert "kept" in found.lines()[-1]


def test_guided_plans_are_bound_to_their_weight():
    guided = ClassifierFree(data(torch.tensor([0, 0, 1])).denoiser(Gaussian(Flow())), 1.5)
    cond = {"label": torch.tensor([0, 1])}
    plan = tune(guided, 3, cond=cond, effort=Effort(noises=64, batch=32, steps=3))
    assert plan.guidance == 1.5
    with pytest.raises(bd.UserError, match="guidance"):
        plan.run(ClassifierFree(guided.denoiser, 3.0), torch.zeros(2, 2), cond)


def test_same_seed_same_plan():
    denoiser = data().denoiser(Gaussian(VP()))
    one, two = (tuned(denoiser, 3, seed=4, effort=Effort(64, 32, 5)) for _ in range(2))
    assert torch.equal(one.plan.means, two.plan.means) and torch.equal(one.plan.times, two.plan.times)


def test_bad_input():
    with pytest.raises(bd.UserError):
        tune(data().denoiser(Gaussian(VP())), 0)
    with pytest.raises(bd.UserError, match="deterministic"):
        Table.of(DDPM().plan(VP(), default_grid(GaussianData(VP())).times(VP(), 3)))
