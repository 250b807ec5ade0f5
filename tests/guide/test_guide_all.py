"""What every guidance must keep: a sample is guided on its own; and guidance of tokens, by Bayes' rule written out."""

import inspect

import pytest
import torch

import backdrift as bd
from backdrift import UserError, guide
from backdrift.guide import (
    Annealed,
    Apart,
    AutoGuidance,
    Classifier,
    ClassifierFree,
    Composed,
    Interval,
    NoisyClassifier,
    Particles,
    Projected,
    Ramp,
    Rescaled,
    Reward,
    exact_classifier,
    plus,
)
from backdrift.process import Gaussian

PROCESS = Gaussian(bd.schedule.VP())
T = 0.4
EXACT = bd.exact.Mixture(
    torch.tensor([0.2, 0.5, 0.3]).double(),
    torch.tensor([[-1.0, 0.5, 0.2], [2.0, 0.0, 0.0], [0.5, -2.0, 1.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.6, 0.2], dtype=torch.float64),
    labels=torch.tensor([0, 1, 0]),
).denoiser(PROCESS)
WEAK = bd.exact.Gaussian(torch.zeros(3).double(), torch.tensor(1.5).double()).denoiser(PROCESS)
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5
COND = {"label": torch.tensor([0, 1, 0, 1, 0, 1]), "sample": torch.arange(6)}


class Forget(bd.Denoiser):
    """A denoiser that knows no condition."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.process, self.event_shape = denoiser, denoiser.process, denoiser.event_shape

    def forward(self, xt, t, cond=None):
        return self.denoiser(xt, t)


def trained():
    """A classifier as a network of random weights."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)

    class Net(torch.nn.Module):
        def forward(self, x, noise):
            return net(x) * noise[:, None]

    return NoisyClassifier(Net(), PROCESS, 0.5)


ALONE = {
    "plain": ClassifierFree(EXACT, 3.0),
    "interval": ClassifierFree(EXACT, Interval(3.0, 0.1, 10.0)),
    "ramp": ClassifierFree(EXACT, Ramp(3.0)),
    "rows": ClassifierFree(EXACT, plus(bd.schedule.VP(), [0.9, T, 0.1], 0.7)),
    "against": ClassifierFree(EXACT, 3.0, against={"label": COND["label"][:1]}),
    "rescaled": ClassifierFree(EXACT, 3.0, mixing=Rescaled()),
    "projected": ClassifierFree(EXACT, 3.0, mixing=Projected(0.2, limit=0.1)),
    "auto": AutoGuidance(Forget(EXACT), Forget(WEAK), 2.0),
    "composed": Composed(EXACT, [({"label": 0}, 1.0), ({"label": torch.tensor([1])}, -0.5)]),
    "exact classifier": Classifier(EXACT, exact_classifier(EXACT), 2.0),
    "trained classifier": Classifier(EXACT, trained(), 2.0),
    "reward": Reward(EXACT, lambda x0: x0.square().sum(1)),
    "annealed": ClassifierFree(Annealed(EXACT, 0.1, 10.0), 3.0),
}


def rows(chosen):
    return X[chosen], {name: value[chosen] for name, value in COND.items()}


@pytest.mark.parametrize("name", ALONE)
def test_no_sample_is_guided_by_its_neighbours(name):
    whole = ALONE[name](X, T, COND).mean
    assert bool((whole != EXACT(X, T, COND).mean).any())
    for chosen in (torch.tensor([4]), torch.tensor([5, 0, 3])):
        x, cond = rows(chosen)
        torch.testing.assert_close(ALONE[name](x, T, cond).mean, whole[chosen], rtol=1e-12, atol=1e-12)


def test_only_apart_looks_at_the_batch():
    together = Apart(EXACT, 2.0)(X, T, COND).mean
    x, cond = rows(torch.tensor([4, 1]))
    assert float((Apart(EXACT, 2.0)(x, T, cond).mean - together[[4, 1]]).abs().max()) > 1e-3


def test_particles_of_a_sample_are_its_own():
    composed = Composed(EXACT, [({"label": 0}, 1.0)])
    whole = bd.sample(composed, shape=(4, 3), solver=Particles(4), steps=6, seed=3)
    part = bd.sample(composed, shape=(2, 3), solver=Particles(4), steps=6, seed=3, index=[2, 0])
    torch.testing.assert_close(part, whole[[2, 0]], rtol=1e-5, atol=1e-5)


def test_every_guidance_is_here():
    def inside(denoiser):
        return {type(module) for module in denoiser.modules()} | {
            type(value) for value in vars(denoiser).values() if hasattr(type(value), "kind")
        }

    here = set().union(*map(inside, ALONE.values())) | {Apart, Particles}
    classes = {getattr(guide, name) for name in guide.__all__ if inspect.isclass(getattr(guide, name))}
    assert classes <= here, classes - here


TOKENS = torch.tensor([[0, 1], [1, 1], [2, 0], [0, 2], [2, 2]])
SHARES = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
CLASSES = torch.tensor([0, 0, 1, 1, 0])


@pytest.mark.parametrize("process", [bd.process.UniformTokens(3), bd.process.Masking(3)])
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 3.0])
def test_tokens_are_guided_in_log_probabilities(process, w):
    """q(k) of p_1(k)^w p_0(k)^(1 - w), position by position, with p_0 and p_1 by Bayes' rule over the atoms."""
    exact = bd.exact.Atoms(TOKENS, SHARES, labels=CLASSES).denoiser(process)
    t, states = 0.6, torch.tensor([[0, 1], [2, 2], [0, 2]])
    if isinstance(process, bd.process.Masking):
        states = torch.tensor([[3, 3], [2, 3], [3, 2]])
    label = torch.tensor([0, 1, 0])
    keep = float(process.schedule.alpha_sigma(t)[0])
    found = ClassifierFree(exact, w)(states, t, {"label": label}).mean

    def likelihood(x, atom):
        if isinstance(process, bd.process.Masking):
            return 1 - keep if x == 3 else keep * float(x == atom)
        return (1 - keep) / 3 + keep * float(x == atom)

    def belief(state, place, allowed):
        shares = torch.zeros(3, dtype=torch.float64)
        for atom, share, ok in zip(TOKENS.tolist(), SHARES.tolist(), allowed.tolist(), strict=True):
            shares[atom[place]] += ok * share * likelihood(state[0], atom[0]) * likelihood(state[1], atom[1])
        return shares / shares.sum()

    for i, state in enumerate(states.tolist()):
        for place in range(2):
            plain = belief(state, place, torch.ones(5, dtype=torch.bool))
            given = belief(state, place, label[i] == CLASSES)
            both = (plain > 0) & (given > 0)
            mixed = torch.where(both, given**w * plain ** (1 - w), 0.0)
            expected = plain if w == 0 else given if w == 1 else mixed / mixed.sum()
            torch.testing.assert_close(found[i, place], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_weights_that_make_no_sense(weight):
    for make in (
        lambda: ClassifierFree(EXACT, weight),
        lambda: AutoGuidance(EXACT, WEAK, weight),
        lambda: Interval(weight, 0.1, 1.0),
        lambda: Ramp(weight),
    ):
        with pytest.raises(UserError, match="A guidance weight is 0"):
            make()
    if weight == -1.0:  # "not", or away from a reward
        return
    for make in (
        lambda: Composed(EXACT, [({"label": 0}, weight)]),
        lambda: Classifier(EXACT, exact_classifier(EXACT), weight),
        lambda: Reward(EXACT, torch.sum, weight),
        lambda: Apart(EXACT, weight),
    ):
        with pytest.raises(UserError, match="finite number"):
            make()
