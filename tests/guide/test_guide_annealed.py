"""Condition annealing: what it hides is a masking (or a Gaussian) corruption of the condition, by closed forms."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.guide import Annealed, ClassifierFree
from backdrift.posterior import TensorPosterior
from backdrift.process import Gaussian

PROCESS = Gaussian(bd.schedule.VP())
MIXTURE = bd.exact.Mixture(
    torch.tensor([0.2, 0.5, 0.3]).double(),
    torch.tensor([[-1.0, 0.5], [2.0, 0.0], [0.5, -2.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.6, 0.2], dtype=torch.float64),
    labels=torch.tensor([0, 1, 0]),
).denoiser(PROCESS)
N = 400
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
COND = {"label": torch.arange(N) % 2}
NUMBERED = {**COND, "sample": torch.arange(N)}
LOW, HIGH = 0.5, 4.0


def time_of(ratio):
    return float(PROCESS.schedule.time(torch.tensor(-2 * math.log(ratio), dtype=torch.float64)))


def test_whole_below_null_above():
    annealed = Annealed(MIXTURE, LOW, HIGH)
    below, above = time_of(0.9 * LOW), time_of(1.1 * HIGH)
    assert torch.equal(annealed(X, below, NUMBERED).mean, MIXTURE(X, below, COND).mean)
    assert torch.equal(annealed(X, above, NUMBERED).mean, MIXTURE(X, above).mean)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_labels_are_masked_with_the_stated_share(share):
    """g = share where log(sigma / alpha) has that part of the way left; every sample is one of the two beliefs."""
    t = time_of(math.exp((1 - share) * math.log(HIGH) + share * math.log(LOW)))
    annealed = Annealed(MIXTURE, LOW, HIGH)
    assert float(annealed.share(t)) == pytest.approx(share)
    found, given, free = annealed(X, t, NUMBERED).mean, MIXTURE(X, t, COND).mean, MIXTURE(X, t).mean
    with_label = (found == given).all(1)
    assert bool((with_label | (found == free).all(1)).all())
    # four standard deviations of a share of 400
    assert abs(float(with_label.double().mean()) - share) < 4 * math.sqrt(share * (1 - share) / N)


def test_a_label_counts_from_one_level_on_and_never_less():
    annealed = Annealed(MIXTURE, LOW, HIGH)
    times = [time_of(r) for r in (3.5, 2.5, 1.5, 1.0, 0.6)]
    counts = torch.stack([(annealed(X, t, NUMBERED).mean == MIXTURE(X, t, COND).mean).all(1) for t in times]).int()
    assert bool((counts.diff(dim=0) >= 0).all()) and 0 < counts[0].sum() < counts[-1].sum()


class Placed(bd.Denoiser):
    """x_0 given y is N(y[0] - y[1], 1): a condition of two real numbers, in closed form."""

    def __init__(self):
        super().__init__()
        self.process, self.event_shape = PROCESS, (1,)

    def forward(self, xt, t, cond=None):
        alpha, sigma = (float(v) for v in PROCESS.schedule.alpha_sigma(t))
        prior = (cond["place"] * torch.tensor([1.0, -1.0])).sum(1, keepdim=True)
        return TensorPosterior((alpha * xt + sigma**2 * prior) / (alpha**2 + sigma**2))


@pytest.mark.parametrize("rescale", [0.0, 1.0])
def test_real_conditions_are_noised_and_rescaled(rescale):
    n = 20_000
    place = torch.tensor([[1.5, -0.5]]).double().expand(n, 2)
    annealed = Annealed(Placed(), LOW, HIGH, names=("place",), scale=0.7, rescale=rescale)
    t, share = time_of(math.sqrt(LOW * HIGH)), 0.5
    alpha, sigma = (float(v) for v in PROCESS.schedule.alpha_sigma(t))
    x = torch.zeros(n, 1).double()
    found = annealed(x, t, {"place": place, "sample": torch.arange(n)}).mean * (alpha**2 + sigma**2) / sigma**2
    # y is normal with mean sqrt(g) y and deviation scale sqrt(1 - g) in each number
    gap, spread = math.sqrt(share) * 2.0, 0.7 * math.sqrt(2 * (1 - share))
    if rescale:
        # with its own mean and deviation again, two numbers are y or y the other way round
        assert torch.allclose(found.abs(), torch.tensor(2.0).double())
        turned = 0.5 * math.erfc(gap / spread / math.sqrt(2))
        assert abs(float((found < 0).double().mean()) - turned) < 0.01
    else:
        assert float(found.mean()) == pytest.approx(gap, abs=4 * spread / math.sqrt(n))
        assert float(found.std()) == pytest.approx(spread, rel=0.02)


def test_a_sample_depends_on_its_number_alone():
    annealed, t = Annealed(MIXTURE, LOW, HIGH), time_of(1.4)
    whole = annealed(X, t, NUMBERED).mean
    some = torch.tensor([7, 3, 250])
    part = annealed(X[some], t, {name: value[some] for name, value in NUMBERED.items()}).mean
    torch.testing.assert_close(part, whole[some], rtol=0, atol=1e-14)
    other = Annealed(MIXTURE, LOW, HIGH, seed=1)(X, t, NUMBERED).mean
    assert bool((other != whole).any())


def test_guided_samples_keep_modes_that_guidance_empties():
    """A label of two modes, of which weight 6 keeps the one that is farther from the other label."""
    line = bd.exact.Mixture(
        torch.tensor([0.25, 0.25, 0.5]).double(),
        torch.tensor([[-0.8], [2.0], [-1.2]], dtype=torch.float64),
        0.05,
        labels=torch.tensor([0, 0, 1]),
    ).denoiser(PROCESS)
    n = 300
    cond = {"label": torch.zeros(n).long(), "sample": torch.arange(n)}

    def near_share(denoiser):
        x = bd.sample(ClassifierFree(denoiser, 6.0), shape=(n, 1), cond=cond, steps=30).flatten()
        return float((x < 0.6).double().mean())

    guided, annealed = near_share(Annealed(line, 50.0, 60.0)), near_share(Annealed(line, 0.5, 4.0))
    # half of the label's pictures are of the near mode
    assert guided < 0.15 and annealed > guided + 0.1


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="numbers: give cond"):
        Annealed(MIXTURE, LOW, HIGH)(X, 0.5, COND)
    with pytest.raises(UserError, match="to a higher one"):
        Annealed(MIXTURE, 2.0, 1.0)
    with pytest.raises(UserError, match="scale of at least 0"):
        Annealed(MIXTURE, LOW, HIGH, rescale=2.0)
    tokens = bd.exact.Atoms(torch.tensor([[0, 1]])).denoiser(bd.process.UniformTokens(3))
    with pytest.raises(UserError, match="Gaussian process"):
        Annealed(tokens, LOW, HIGH)
