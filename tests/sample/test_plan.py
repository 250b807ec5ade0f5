import json
import math
import weakref

import pytest
import torch
from cases import SCHEDULES, GaussianData

from backdrift.errors import UserError
from backdrift.noise import Noise, brownian
from backdrift.posterior import TensorPosterior
from backdrift.process import Centred, Gaussian, Masking
from backdrift.sample.grids import DataScaled
from backdrift.sample.ode import DPMpp, Heun
from backdrift.sample.plan import Plan
from backdrift.sample.sde import DDIM, DDPM
from backdrift.sample.trace import Linear, Tracer
from backdrift.schedule import EDM, VP, Cosine, Flow, Tabulated


class Curved(GaussianData):
    """A denoiser that is far from affine, so that a wrong coefficient cannot hide."""

    def forward(self, xt, t, cond=None):
        return TensorPosterior(torch.tanh(xt * (1 + t)) + 0.1 * t)


def tables(count=6, draws=4, density=0.6, seed=0):
    """Random causal tables with many zeros, one row of which is empty and one noise of which is never used."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.5
        return values * (torch.rand(*shape, generator=generator) < density)

    states, means, noise = draw(count + 1, count + 1).tril(), draw(count + 1, count).tril(-1), draw(count + 1, draws)
    states[3], means[3], noise[3], noise[:, 1] = 0, 0, 0, 0
    times = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    ends = torch.linspace(1, 0, draws + 1, dtype=torch.float64)
    return times, states, means, noise, torch.stack([ends[:-1], ends[1:]], 1)


def naive(plan, denoiser, x1, xi):
    """Every entry of the table, zeros included, with every state kept."""
    ys, ds = [], []
    for n in range(plan.evaluations + 1):
        y = plan.states[n, 0] * x1
        for j in range(n):
            y = y + plan.states[n, j + 1] * ys[j] + plan.means[n, j] * ds[j]
        for m in range(len(plan.noise_intervals)):
            y = y + plan.noise[n, m] * xi[m]
        ys.append(y)
        if n < plan.evaluations:
            ds.append(denoiser(y, float(plan.times[n])).mean)
    return ys[-1]


def unit_noises(plan, x):
    return [torch.zeros_like(x) for _ in plan.noise_intervals]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("density", [0.25, 0.6, 1.0])
def test_the_engine_equals_a_dense_evaluation_of_the_table(seed, density):
    plan = Plan(*tables(density=density, seed=seed), Flow())
    generator = torch.Generator().manual_seed(100 + seed)
    x1, *xi = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64)
    before = x1.clone()
    denoiser = Curved(Flow())
    torch.testing.assert_close(plan.run(denoiser, x1, noise=xi), naive(plan, denoiser, x1, xi), rtol=0, atol=1e-13)
    assert torch.equal(x1, before)


def test_the_engine_with_keyed_noise_equals_the_table_with_the_same_draws():
    plan = DDPM().plan(Cosine(), [1.0, 0.7, 0.5, 0.2, 0.0])
    x1 = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = Noise.of(5, 3)
    clock = Cosine().angle(plan.times)
    xi = [w / length.abs().sqrt() for w, length in zip(brownian(noise, clock.tolist(), x1), clock.diff(), strict=True)]
    denoiser = Curved(Cosine())
    expected = naive(plan, denoiser, x1, xi)
    torch.testing.assert_close(plan.run(denoiser, x1, noise=noise), expected, rtol=0, atol=1e-12)


def test_noises_that_do_not_follow_each_other_are_standard_normal_too():
    times, states, means, noise, intervals = tables(density=1.0)
    plan = Plan(times, states, means, noise, intervals.flip(0), Flow())
    x1 = torch.zeros(2000, 20, dtype=torch.float64)
    xi = torch.stack(list(plan._draws(Noise.of(0, 2000), x1)))
    gram = torch.einsum("mbd,nbd->mn", xi, xi) / x1.numel()
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), rtol=0, atol=5 / 200)


def test_states_that_no_later_row_needs_are_dropped():
    alive = []

    class Watched(GaussianData):
        def forward(self, xt, t, cond=None):
            mean = super().forward(xt, t).mean
            alive.extend([weakref.ref(xt), weakref.ref(mean)])
            counts.append(sum(r() is not None for r in alive))
            return TensorPosterior(mean)

    for solver, most in ((DDIM(), 3), (DDPM(), 3), (DPMpp(2), 4), (Heun(), 5)):
        alive.clear()
        counts = []
        x1 = torch.ones(2, 1, dtype=torch.float64)
        solver.run(Watched(VP()), x1, DataScaled().times(VP(), 12), noise=Noise.of(0, 2))
        # x_1 (this caller holds it), this step's state and mean, and what the step needs of earlier ones
        assert max(counts[3:]) <= most, (solver, counts)


def test_what_on_step_was_shown_is_never_written_to():
    for solver in (DDIM(), DDPM(), DPMpp(3), Heun()):
        seen = []
        x1 = torch.ones(2, 3, dtype=torch.float64)
        plan = solver.plan(Flow(), DataScaled().times(Flow(), 6))

        def keep(step, seen=seen):
            seen.append((step, step.state.clone(), step.mean.clone()))

        denoiser = Curved(Flow())
        out = plan.run(denoiser, x1, None, Noise.of(0, 2), keep)
        assert [step.n for step, _, _ in seen] == list(range(plan.evaluations))
        for step, state, mean in seen:
            assert step.total == plan.evaluations and step.t == float(plan.times[step.n])
            assert torch.equal(step.state, state) and torch.equal(step.mean, mean)
            torch.testing.assert_close(denoiser(state, step.t).mean, mean, rtol=0, atol=0)
        assert torch.equal(x1, torch.ones_like(x1)) and out.shape == x1.shape


def test_the_output_has_the_type_of_the_start_whatever_the_network_computes_in():
    class Half(GaussianData):
        def forward(self, xt, t, cond=None):
            return TensorPosterior(super().forward(xt, t).mean.to(torch.bfloat16))

    for dtype in (torch.float32, torch.float64):
        assert DDIM().run(Half(Flow()), torch.ones(2, 1, dtype=dtype), torch.tensor([1.0, 0.5, 0.0])).dtype == dtype


# ---------------------------------------------------------------------- refusals


def broken(name, index, value):
    parts = dict(zip(("times", "states", "means", "noise", "noise_intervals"), tables(), strict=True))
    parts[name] = parts[name].clone()
    parts[name][index] = value
    return parts


@pytest.mark.parametrize(
    ("name", "index", "value", "sentence"),
    [
        ("states", (2, 3), 1.0, "causal"),
        ("states", (2, 5), 1.0, "causal"),
        ("means", (2, 2), 1.0, "causal"),
        ("means", (0, 0), 1e-300, "causal"),
        ("states", (4, 0), math.nan, "Row 4 of this plan's states is not finite"),
        ("means", (5, 1), math.inf, "Row 5 of this plan's means is not finite"),
        ("noise", (1, 0), -math.inf, "Row 1 of this plan's noise is not finite"),
        ("times", 2, 1.5, "lie in .0, 1., but one is 1.5"),
        ("times", 0, -0.1, "but one is -0.1"),
        ("times", 1, math.nan, "but one is nan"),
        ("noise_intervals", (0, 1), 2.0, "but one is 2.0"),
    ],
)
def test_a_table_that_cannot_be_run_is_refused(name, index, value, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        Plan(**broken(name, index, value), schedule=Flow())
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize("name", ["states", "means", "noise", "noise_intervals"])
def test_tables_of_wrong_shape_are_refused(name):
    parts = dict(zip(("times", "states", "means", "noise", "noise_intervals"), tables(), strict=True))
    for shape in (parts[name][:, :1], parts[name][:-1]):
        with pytest.raises(UserError, match="shape"):
            Plan(**{**parts, name: shape}, schedule=Flow())
    with pytest.raises(UserError, match="0 evaluations"):
        empty = torch.zeros(1, 0).double()
        Plan(torch.ones(1).double(), torch.ones(1, 1).double(), empty, empty, torch.zeros(0, 2), Flow())


def test_a_plan_is_bound_to_its_schedule_process_and_guidance():
    plan = DDIM().plan(VP(), [1.0, 0.5, 0.0])
    x1 = torch.ones(1, 1)
    with pytest.raises(UserError, match="made for VP"):
        plan.run(GaussianData(VP(0.1, 19.0)), x1)
    tokens = GaussianData(VP())
    tokens.process = Masking(3)
    with pytest.raises(UserError, match="not Masking"):
        plan.run(tokens, x1)
    guided = GaussianData(VP())
    guided.guidance = 2.0
    plan.run(guided, x1)
    plan.with_guidance(2.0).run(guided, x1)
    with pytest.raises(UserError, match=r"guidance 3, but the denoiser has 2"):
        plan.with_guidance(3.0).run(guided, x1)
    with pytest.raises(UserError, match="but the denoiser has none"):
        plan.with_guidance(3.0).run(GaussianData(VP()), x1)


def test_a_stochastic_plan_without_noise_is_refused():
    plan, denoiser, x1 = DDPM().plan(VP(), [1.0, 0.5, 0.0]), GaussianData(VP()), torch.ones(1, 1)
    with pytest.raises(UserError, match="stochastic"):
        plan.run(denoiser, x1)
    with pytest.raises(UserError, match="draws 2 noises, but 1"):
        plan.run(denoiser, x1, noise=[x1])
    # one step to clean data adds no noise
    DDPM().plan(VP(), [1.0, 0.0]).run(denoiser, x1)


# ---------------------------------------------------------------------- keeping


@pytest.mark.parametrize("schedule", [VP(0.1, 19.3), EDM(rho=5.0), Tabulated((0.9, 0.3, 1e-3))], ids=lambda s: s.kind)
def test_saving_and_loading_is_exact(schedule, tmp_path):
    plan = DDIM(eta=0.7).plan(schedule, DataScaled(0.37).times(schedule, 7)).with_guidance(1 / 3)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    for name in ("times", "states", "means", "noise", "noise_intervals"):
        assert torch.equal(getattr(again, name), getattr(plan, name)) and getattr(again, name).dtype == torch.float64
    for name in ("schedule", "start", "guidance", "solver"):
        assert getattr(again, name) == getattr(plan, name)


def test_files_that_are_no_plans_are_refused(tmp_path):
    path = tmp_path / "plan.json"
    DDPM().plan(Flow(), [1.0, 0.5, 0.0]).save(path)
    good = json.loads(path.read_text())
    bad = [
        "",
        "{",
        "[]",
        "3",
        {**good, "format": 99},
        {key: value for key, value in good.items() if key != "means"},
        {**good, "means": [[9, 0, 1.0]]},
        {**good, "means": [[1, 0]]},
        {**good, "times": "soon"},
        {**good, "times": [1.0, math.nan, 0.0]},
        {**good, "evaluations": -2},
        {**good, "noise_intervals": [[1.0, 0.5, 0.2]]},
        {**good, "schedule": "VP"},
        {**good, "schedule": {"kind": "schedule.Nothing"}},
        {**good, "start": "noon"},
        {**good, "states": [[0, 0, math.inf]]},
    ]
    for document in bad:
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        with pytest.raises(UserError):
            Plan.load(path)
    with pytest.raises(UserError, match="is not a plan"):
        Plan.load(tmp_path / "missing.json")


# ---------------------------------------------------------------------- exact checks


@pytest.mark.parametrize("solver", [DDIM(), DPMpp(3), Heun(), DDIM(0.6), DDPM(0.3)], ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_affine_is_what_a_run_with_the_exact_denoiser_does(schedule, solver):
    # rows of the batch: the origin, a unit of x_1, and a unit of every noise; a run is affine in them
    variance = torch.tensor([0.25, 0.0, 2.0], dtype=torch.float64)
    mean = torch.tensor([0.3, -0.5, 0.0], dtype=torch.float64)
    plan = solver.plan(schedule, DataScaled().times(schedule, 6))
    draws = len(plan.noise_intervals)
    x1 = torch.zeros(2 + draws, 3, dtype=torch.float64)
    x1[1] = 1
    xi = torch.zeros(draws, *x1.shape, dtype=torch.float64)
    for m in range(draws):
        xi[m, 2 + m] = 1
    out = plan.run(GaussianData(schedule, mean, variance), x1, noise=list(xi))
    exact = plan.affine(mean, variance)
    torch.testing.assert_close(out[0], exact.offset, rtol=0, atol=1e-12)
    torch.testing.assert_close(out[1] - out[0], exact.gain, rtol=0, atol=1e-12)
    torch.testing.assert_close(out[2:] - out[0], exact.noise, rtol=0, atol=1e-12)
    prior = float(schedule.alpha_sigma(1.0)[1])
    for start in (None, (0.2, 0.7)):
        first, second = (0.0, prior**2) if start is None else start
        got_mean, got_variance = plan.law(mean, variance, start)
        torch.testing.assert_close(got_mean, out[0] + (out[1] - out[0]) * first, rtol=1e-12, atol=1e-12)
        spread = (out[1] - out[0]) ** 2 * second + ((out[2:] - out[0]) ** 2).sum(0)
        torch.testing.assert_close(got_variance, spread, rtol=1e-12, atol=1e-12)


def test_the_law_of_ddpm_is_the_recursion_of_its_paper():
    """Ho et al. 2020, Eq. 7 in betas, on N(m, v) data: a scalar recursion for mean and variance."""
    schedule, m, v = Tabulated.linear(), 0.4, 0.3
    bars = [1.0, *schedule.alphas_bar]
    mean, variance = 0.0, 1 - bars[-1]
    entries = list(range(1000, 0, -50))
    for k, before in zip(entries, [*entries[1:], 0], strict=True):
        bar, bar_before = bars[k], bars[before]
        beta = 1 - bar / bar_before
        on_x0 = math.sqrt(bar_before) * beta / (1 - bar)
        on_xt = math.sqrt(1 - beta) * (1 - bar_before) / (1 - bar)
        gain = math.sqrt(bar) * v / (bar * v + 1 - bar)
        total = on_xt + on_x0 * gain
        mean = total * mean + on_x0 * (1 - gain * math.sqrt(bar)) * m
        variance = total**2 * variance + (1 - bar_before) / (1 - bar) * beta
    plan = DDPM().plan(schedule, [*(k / 1000 for k in entries), 0.0])
    got_mean, got_variance = plan.law(m, v)
    assert got_mean == pytest.approx(mean, rel=1e-10) and got_variance == pytest.approx(variance, rel=1e-10)


# ---------------------------------------------------------------------- the tracer


def test_symbols_add_scale_and_divide():
    x, D = Linear({("x", 0): 2.0}), Linear({("D", 0): 3.0})
    assert ((x - D) / 2 + 0.5 * x * 4).terms == {("x", 0): 5.0, ("D", 0): -1.5}
    assert x.terms == {("x", 0): 2.0}
    assert (x / 0).terms == {("x", 0): math.inf}


def test_the_table_of_a_small_algorithm_written_out():
    trace = Tracer()
    x = trace.start
    D = trace.evaluate(x, 1.0)
    x = 0.5 * x + 2.0 * D + 0.1 * trace.noise(1.0, 0.4)
    D2 = trace.evaluate(x, 0.4)
    plan = trace.finish(3.0 * x + D2 - D, Flow(), 1.0, 0.0)
    assert plan.times.tolist() == [1.0, 0.4, 0.0]
    assert plan.states.tolist() == [[1, 0, 0], [0, 0.5, 0], [0, 0, 3]]
    assert plan.means.tolist() == [[0, 0], [2, 0], [-1, 1]]
    assert plan.noise.tolist() == [[0], [0.1], [0]] and plan.noise_intervals.tolist() == [[1.0, 0.4]]


def test_the_projection_of_a_process_applies_to_every_draw():
    denoiser = GaussianData(VP(), mean=0.0)
    denoiser.process = Gaussian(VP(), project=Centred(-1))
    x1 = Centred(-1)(torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    out = DDPM().run(denoiser, x1, DataScaled().times(VP(), 5), noise=Noise.of(0, 2))
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-14)
