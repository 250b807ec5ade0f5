import itertools

import pytest
import torch
from cases import SCHEDULES, GaussianData

from backdrift.denoiser import Denoiser, TokenNetwork
from backdrift.errors import UserError
from backdrift.exact import Atoms
from backdrift.noise import Noise
from backdrift.posterior import FieldsPosterior, TensorPosterior, expand
from backdrift.process import Gaussian, Masking, Product, UniformTokens
from backdrift.sample import sample
from backdrift.sample.ancestral import Bridge, Reveal
from backdrift.sample.default import SHARE, default_grid, default_solver
from backdrift.sample.exponential import DPMSolver
from backdrift.sample.expsde import Churn
from backdrift.sample.fixed import PLMS
from backdrift.sample.gauge import TRIG
from backdrift.sample.grids import Angle, Leading, Trailing, Uniform
from backdrift.sample.langevin import AnnealedLangevin, PredictorCorrector
from backdrift.sample.ode import DPMpp, Euler, Heun
from backdrift.sample.sde import DDIM, DDPM
from backdrift.schedule import EDM, VP, Cosine, Flow

SOLVERS = [DDIM(), DDIM(1.0), DDPM(), Euler(TRIG), Heun(), DPMpp(1), DPMpp(2), DPMpp(3)]


class Smooth(Denoiser):
    """A small convolution as a network: each sample on its own, and far from linear."""

    def __init__(self, process, event_shape):
        super().__init__()
        self.process, self.event_shape = process, event_shape
        self.net = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.net.weight.data = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 5

    def forward(self, xt, t, cond=None):
        alpha, sigma = (expand(v, xt) for v in self.process.schedule.alpha_sigma(t))
        return TensorPosterior(torch.tanh(self.net(alpha * xt / (alpha**2 + sigma**2))))


def same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            same(one[name], other[name])
    elif one.is_floating_point():
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    else:
        assert torch.equal(one, other)


def rows(x, index):
    return {name: rows(v, index) for name, v in x.items()} if isinstance(x, dict) else x[index]


def size(x):
    return len(next(iter(x.values()))) if isinstance(x, dict) else len(x)


def check_keying(draw):
    """Sample i is the same in batches of 64, 7 and 1, by index alone, and in any order."""
    whole = draw(list(range(64)))
    assert size(whole) == 64
    for first in (0, 21, 57):
        same(draw(list(range(first, first + 7))), rows(whole, slice(first, first + 7)))
    for i in (0, 5, 63):
        same(draw([i]), rows(whole, slice(i, i + 1)))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    same(draw(order.tolist()), rows(whole, order))
    # different samples and different seeds are different
    leaf = next(iter(whole.values())) if isinstance(whole, dict) else whole
    assert len({tuple(row.flatten().tolist()) for row in leaf}) > 8


@pytest.mark.parametrize("side", [6, 24])  # 108 and 1,728 elements: both sources of normal draws
@pytest.mark.parametrize("solver", [None, DDIM(), Heun(), DDIM(0.7), DDPM(1.0), Bridge()], ids=repr)
def test_a_sample_is_keyed_by_its_seed_and_number(solver, side):
    denoiser = Smooth(Gaussian(Cosine()), (3, side, side))
    check_keying(lambda index: sample(denoiser, index=index, solver=solver, steps=5, seed=3))
    assert not torch.equal(*(sample(denoiser, index=[0], solver=solver, steps=2, seed=seed) for seed in (0, 1)))


def tokens(process, positions=12):
    """A token network with fixed random weights that mixes neighbours."""
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(process.classes + 1, process.classes, generator=generator)

    def net(x, noise, cond):
        seen = table[x]
        return seen + 0.5 * seen.roll(1, 1).sin() + noise[:, None, None]

    return TokenNetwork(net, process, (positions,))


@pytest.mark.parametrize(
    ("process", "solver"),
    [(Masking(5), None), (Masking(5), Reveal()), (UniformTokens(5), Bridge())],
    ids=["masking", "reveal", "uniform"],
)
def test_token_samples_are_keyed_too(process, solver):
    denoiser = tokens(process)
    check_keying(lambda index: sample(denoiser, index=index, solver=solver, steps=6, seed=3))


class Pair(Denoiser):
    """A picture and tokens whose beliefs depend on each other."""

    event_shape = {"picture": (3, 6, 6), "words": (4,)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.process = Product({"picture": Gaussian(Flow()), "words": Masking(5)})
        self.picture = Smooth(self.process.fields["picture"], (3, 6, 6))
        self.words = tokens(self.process.fields["words"], 4)

    def forward(self, xt, t, cond=None):
        shift = xt["words"].float().mean(1)[:, None, None, None] / 5
        picture = self.picture(xt["picture"] + shift, t)
        return FieldsPosterior({"picture": picture, "words": self.words(xt["words"], t)})


def test_product_samples_are_keyed_too():
    denoiser = Pair()
    check_keying(lambda index: sample(denoiser, index=index, steps=6, seed=3))
    x = sample(denoiser, index=[0, 1], steps=6)
    assert x["picture"].shape == (2, 3, 6, 6) and x["words"].shape == (2, 4)
    assert bool((x["words"] < 5).all())


def test_the_start_and_the_noise_of_a_sample_are_different_streams():
    # with D = 0 a DDPM run is linear in x_1 and the noises; equal streams would correlate them
    seen = []
    denoiser = Smooth(Gaussian(VP()), (3, 24, 24))
    sample(denoiser, index=[0], solver=DDPM(), steps=3, on_step=lambda step: seen.append(step.state.flatten()))
    plan = DDPM().plan(VP(), default_grid(denoiser).times(VP(), 3))
    xi = [x.flatten() for x in plan._draws(Noise(0, torch.tensor([0])), torch.zeros(1, 3, 24, 24))]
    for draw in xi[:2]:
        assert abs(float(torch.corrcoef(torch.stack([seen[0], draw]))[0, 1])) < 0.1


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("solver", [*SOLVERS, Bridge()], ids=repr)
def test_steps_are_calls_of_the_denoiser(schedule, solver):
    denoiser = GaussianData(schedule)
    grids = (None, Leading(), Trailing()) if schedule in (VP(), Flow()) else (None,)
    for steps in range(1, 13):
        for grid in grids:
            denoiser.calls, seen = 0, []
            x = sample(denoiser, shape=(1, 1), solver=solver, steps=steps, grid=grid, on_step=seen.append)
            assert denoiser.calls == steps == len(seen) == seen[0].total, (steps, grid)
            assert bool(x.isfinite().all())


@pytest.mark.parametrize("schedule", [VP(), Flow(), EDM()], ids=lambda s: s.kind)
def test_a_users_own_choice_survives_the_budget(schedule):
    denoiser = GaussianData(schedule)

    def spent(solver, steps):
        denoiser.calls = 0
        sample(denoiser, shape=(1, 1), solver=solver, steps=steps)
        return denoiser.calls

    for plain, steps in itertools.product((0, 1, 3), (1, 2, 5, 8)):
        solver, intervals = Heun(plain=plain).budget(steps, schedule, 1.0)
        assert min(plain, steps) <= solver.plain <= max(plain, 1) + 1 and solver.plain <= intervals
        assert spent(Heun(plain=plain), steps) == steps
    assert spent(Churn(Heun(plain=3)), 8) == 8
    assert not PLMS(warmup=False).budget(9, schedule, 1.0)[0].warmup and spent(PLMS(warmup=False), 9) == 9
    few, intervals = PredictorCorrector(corrections=2).budget(9, schedule, 1.0)
    assert (few.corrections, intervals) == (2, 7) and spent(PredictorCorrector(corrections=2), 9) == 9
    for solver, steps in ((AnnealedLangevin(repeats=(4, 1, 3)), 8), (DPMSolver(3, stages=(1, 3, 2, 1)), 7)):
        assert spent(solver, steps) == steps
        with pytest.raises(UserError, match=f"was given {steps} evaluations, but 5 were asked for"):
            spent(solver, 5)


def test_steps_are_calls_for_tokens_and_plans():
    denoiser = tokens(Masking(3), 4)
    for solver in (None, Reveal()):
        for steps in (1, 3, 4, 9):
            seen = []
            sample(denoiser, shape=(2, 4), solver=solver, steps=steps, on_step=seen.append)
            assert len(seen) == steps
    plan, denoiser = Heun().plan(EDM(), Angle().times(EDM(), 4)), GaussianData(EDM())
    sample(denoiser, shape=(2, 1), plan=plan)
    assert denoiser.calls == plan.evaluations == 8


def test_the_ways_to_call_it_agree():
    denoiser = GaussianData(Flow(), event_shape=(3,))
    x1 = denoiser.process.prior(torch.zeros(4, 3), Noise.of(9, 4).at("prior"))
    whole = sample(denoiser, shape=(4, 3), seed=9, solver=DDPM(), steps=6, grid=Uniform())
    assert whole.dtype == torch.float32
    same(sample(denoiser, x1, seed=9, solver=DDPM(), steps=6, grid=Uniform()), whole)
    same(sample(denoiser, index=range(4), seed=9, plan=DDPM().plan(Flow(), Uniform().times(Flow(), 6))), whole)
    same(sample(denoiser, x1[[2]], index=[2], seed=9, solver=DDPM(), steps=6, grid=Uniform()), whole[[2]])
    # the defaults, which take their constant from the recorded data scale
    denoiser.sigma_data = 0.7
    solver, grid = default_solver(denoiser), default_grid(denoiser)
    assert solver.scale == grid.scale == pytest.approx(SHARE * 0.7 * 3**0.25)
    same(sample(denoiser, x1, steps=6), solver.run(denoiser, x1, grid.times(Flow(), 6)))


def test_samples_of_an_exact_distribution_are_its_points():
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    x = sample(Atoms(points).denoiser(Gaussian(Flow())), shape=(64, 3), solver=DPMpp(2), steps=30)
    assert torch.cdist(x, points).min(1).values.max() < 1e-3
    assert len(torch.cdist(x, points).argmin(1).unique()) == 5


def test_bad_input_is_refused_before_any_work():
    denoiser = GaussianData(Flow(), event_shape=(3,))
    plan = DDIM().plan(Flow(), [0.5, 0.2, 0.0])
    cases = [
        ({}, "how many samples"),
        ({"shape": ()}, "how many samples"),
        ({"shape": (2, 3), "steps": 0}, "at least 1 step, not 0"),
        ({"shape": (2, 4)}, r"samples of shape \(3,\), not \(4,\)"),
        ({"shape": (2, 3), "index": [1]}, "index names 1 samples, but the batch has 2"),
        ({"x1": torch.zeros(2, 3), "index": [1, 2, 3]}, "index names 3 samples, but the batch has 2"),
        ({"shape": (2, 3), "plan": plan, "solver": DDIM()}, "either a plan or a solver"),
        ({"shape": (2, 3), "plan": plan, "grid": Angle()}, "either a plan or a solver"),
        ({"shape": (2, 3), "plan": plan}, "starts at t = 0.5"),
        ({"shape": (2, 3), "plan": DDIM().plan(VP(), [1.0, 0.0])}, "made for VP"),
        ({"shape": (2, 3), "solver": Reveal()}, "Reveal serves a Masking process, not Gaussian"),
        ({"shape": (2, 3), "grid": Trailing(), "steps": 1001}, "1 to 1000 steps"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            sample(denoiser, **arguments)
    assert denoiser.calls == 0
    sample(denoiser, torch.zeros(2, 3), plan=plan)
    for solver in (DDIM(), DPMpp(2), DDPM()):
        with pytest.raises(UserError, match=r"not Masking: use bd.solvers.Bridge\(\)"):
            sample(tokens(Masking(3), 4), shape=(2, 4), solver=solver)
