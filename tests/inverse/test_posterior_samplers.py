"""All posterior samplers at once: no draw depends on its batch, any schedule serves, mistakes are one sentence."""

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.config import from_config, kinds, to_config
from backdrift.exact import Mixture
from backdrift.inverse import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    LGD,
    MCG,
    MMPS,
    MPGD,
    TMPD,
    DiffPIR,
    Exact,
    Filtering,
    Function,
    Linear,
    NormDPS,
    PiGDM,
    REDdiff,
    Replacement,
    ReSample,
    RoundedNoise,
    ScoreALD,
    SplitGibbs,
    StepDPS,
    Twisted,
)
from backdrift.noise import Noise
from backdrift.process import Gaussian as Process

SAMPLERS = {
    "score-ALD": ScoreALD(),
    "DPS": DPS(),
    "norm DPS": NormDPS(),
    "published DPS": StepDPS(zeta=0.1),
    "MCG": MCG(zeta=0.1),
    "LGD": LGD(draws=4),
    "PiGDM": PiGDM(),
    "TMPD": TMPD(),
    "full TMPD": TMPD(full=True),
    "MMPS": MMPS(),
    "DDNM": DDNM(),
    "DDRM": DDRM(),
    "DiffPIR": DiffPIR(),
    "MPGD": MPGD(rate=0.1),
    "replacement": Replacement(),
    "RePaint": Replacement(rounds=2, jump=2),
    "twisted": Twisted(count=3),
    "twisted by PiGDM": Twisted(count=3, guide=PiGDM()),
    "filtering": Filtering(count=3),
    "DAPS": DAPS(inner=2, langevin=10),
    "split Gibbs": SplitGibbs(inner=2, langevin=10),
    "RED-diff": REDdiff(),
    "ReSample": ReSample(),
}
ANY_SMOOTH = [
    "DPS",
    "norm DPS",
    "published DPS",
    "LGD",
    "MPGD",
    "twisted",
    "DAPS",
    "split Gibbs",
    "RED-diff",
    "ReSample",
]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def prior():
    return Mixture(torch.ones(2), random(2, 3), 0.1)


def linear():
    return Linear(0.4 * random(2, 3, seed=2), 0.3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_do_not_depend_on_their_neighbours(name):
    denoiser, y = prior().denoiser(Process(bd.schedule.VP())), random(2, seed=3)
    run = SAMPLERS[name]
    together = run(denoiser, linear(), y, 5, steps=6, noise=Noise.of(0, 5))
    alone = run(denoiser, linear(), y, 1, steps=6, noise=Noise(0, torch.tensor([3])))
    torch.testing.assert_close(together[3:4], alone, rtol=1e-8, atol=1e-8)
    assert torch.isfinite(together).all()
    other = run(denoiser, linear(), y, 1, steps=6, noise=Noise(1, torch.tensor([3])))
    assert (other - alone).abs().max() > 1e-6
    # one measurement for each draw
    ys = torch.stack([random(2, seed=k) for k in range(5)])
    each = run(denoiser, linear(), ys, 5, steps=6, noise=Noise.of(0, 5))
    own = run(denoiser, linear(), ys[3], 1, steps=6, noise=Noise(0, torch.tensor([3])))
    torch.testing.assert_close(each[3:4], own, rtol=1e-8, atol=1e-8)


def test_exact_draws_do_not_depend_on_their_batch_either():
    denoiser, y = prior().denoiser(Process(bd.schedule.VP())), random(2, seed=3)
    for run in (Exact(), Exact(solver=bd.solvers.DDIM(eta=1.0))):
        together = run(denoiser, linear(), y, 5, steps=6, noise=Noise.of(0, 5))
        alone = run(denoiser, linear(), y, 1, steps=6, noise=Noise(0, torch.tensor([3])))
        torch.testing.assert_close(together[3:4], alone, rtol=1e-8, atol=1e-8)
        with pytest.raises(UserError, match="single measurement"):
            run(denoiser, linear(), random(5, 2), 5, steps=6, noise=Noise.of(0, 5))


@pytest.mark.parametrize("schedule", [bd.schedule.Flow(), bd.schedule.EDM()])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_schedule_serves_and_steps_are_counted(name, schedule):
    denoiser, seen = prior().denoiser(Process(schedule)), []
    draws = SAMPLERS[name](denoiser, linear(), random(2, seed=3), 4, steps=6, noise=Noise.of(0, 4), on_step=seen.append)
    assert draws.shape == (4, 3)
    assert draws.abs().max() < 10
    assert [step.n for step in seen] == list(range(6))
    assert all(step.total == 6 and step.state.shape == step.mean.shape == (4, 3) for step in seen)


@pytest.mark.parametrize("name", ANY_SMOOTH)
def test_measurements_that_are_not_linear(name):
    denoiser = prior().denoiser(Process(bd.schedule.VP()))
    bent = Function(lambda x: torch.tanh(x[:, :2]), (3,), 0.3)
    draws = SAMPLERS[name](denoiser, bent, torch.tensor([0.4, -0.1]).double(), 3, steps=6, noise=Noise.of(0, 3))
    assert torch.isfinite(draws).all()


def test_float32_and_a_picture_that_is_masked():
    points = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.ones(4, 4)
    mask[:, 2:] = 0
    measurement = bd.inverse.Inpaint(mask, 0.05, (1, 4, 4))
    denoiser = Mixture(torch.ones(3), points, 0.01).denoiser(Process(bd.schedule.VP()))
    y = measurement.forward(points[:1])[0]
    for name, run in SAMPLERS.items():
        draws = run(denoiser, measurement, y, 2, steps=6, noise=Noise.of(0, 2))
        assert draws.dtype == torch.float32 and torch.isfinite(draws).all(), name


def test_every_sampler_has_a_name_and_is_kept_as_json():
    named = {type(run) for run in SAMPLERS.values()} | {Exact}
    assert set(kinds("posterior").values()) == named
    for run in SAMPLERS.values():
        assert from_config(to_config(run)) == run


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ANY_SMOOTH])
def test_linear_samplers_refuse_what_is_not(name):
    denoiser = prior().denoiser(Process(bd.schedule.VP()))
    with pytest.raises(UserError, match="linear measurement"):
        SAMPLERS[name](denoiser, Function(torch.square, (3,), 0.1), torch.zeros(3), 2, steps=4, noise=Noise.of(0, 2))


@pytest.mark.parametrize("name", ["DPS", "LGD", "twisted", "DAPS", "split Gibbs"])
def test_a_likelihood_without_a_gradient_is_refused(name):
    denoiser = prior().denoiser(Process(bd.schedule.VP()))
    with pytest.raises(UserError, match="gradient"):
        SAMPLERS[name](
            denoiser, Linear(random(2, 3), RoundedNoise(0.1)), torch.zeros(2), 2, steps=4, noise=Noise.of(0, 2)
        )


@pytest.mark.parametrize("name", SAMPLERS)
def test_mistakes_are_one_sentence(name):
    denoiser, y, run = prior().denoiser(Process(bd.schedule.VP())), torch.zeros(2).double(), SAMPLERS[name]
    for measurement, y_, n, index, words in (
        (Linear(random(2, 4), 0.1), y, 2, 2, "takes events"),
        (linear(), torch.zeros(3), 2, 2, "y is"),
        (linear(), torch.tensor([0.0, torch.nan]), 2, 2, "missing"),
        (linear(), torch.zeros(3, 2), 2, 2, "3 measurements for"),
        (linear(), y, 3, 2, "Noise of as many"),
    ):
        with pytest.raises(UserError, match=words):
            run(denoiser, measurement, y_, n, steps=4, noise=Noise.of(0, index))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LGD(draws=3), "even"),
        (lambda: MMPS(iterations=0), "at least 1"),
        (lambda: DiffPIR(strength=0.0), "positive"),
        (lambda: DDRM(eta=1.5), "eta"),
        (lambda: Twisted(count=0), "count"),
        (lambda: Twisted(guide=TMPD()), "DPS or PiGDM"),
        (lambda: DAPS(inner=0), "at least 1"),
        (lambda: SplitGibbs(first=0.1, last=0.2), "first >= last"),
        (lambda: ReSample(every=0), "at least 1"),
    ],
)
def test_choices_that_cannot_work(make, words):
    with pytest.raises(UserError, match=words):
        make()
