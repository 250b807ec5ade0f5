"""Laws of the token samplers, computed without sampling wherever that is possible.

The step of a process is a function of uniform (or normal) draws. Given the state, `bridge` inverts cumulative sums, so
bisecting on the draws yields the transition probabilities of the library's own code, to rounding. The law over all
states is then pushed through the steps exactly.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from cases import GaussianData, fitted_order
from scipy.stats import chi2

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.exact import Atoms
from backdrift.noise import Noise
from backdrift.posterior import CategoricalPosterior, FieldsPosterior, TensorPosterior
from backdrift.process import Gaussian, Masking, Product, UniformTokens
from backdrift.sample import sample
from backdrift.sample.ancestral import Bridge, Reveal
from backdrift.schedule import Cosine, Flow, Trig

K, D = 3, 3
TEXTS = torch.tensor(list(itertools.product(range(K), repeat=D)))
LAW = torch.rand(K**D, generator=torch.Generator().manual_seed(4), dtype=torch.float64) ** 3
LAW /= LAW.sum()


class Enumerated(Denoiser):
    """p(x_0^i | x_t) by Bayes' rule over all K^D texts, written out by hand."""

    event_shape = (D,)

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, xt, t, cond=None):
        keep = float(self.process.schedule.alpha_sigma(t)[0])
        equal = (xt[:, None, :] == TEXTS[None]).double()
        if isinstance(self.process, Masking):
            factor = torch.where(xt[:, None, :] == K, 1 - keep, equal * keep)
        else:
            factor = equal * keep + (1 - keep) / K
        joint = LAW * factor.prod(-1)
        joint /= joint.sum(1, keepdim=True)
        onehot = torch.nn.functional.one_hot(TEXTS, K).double()
        return CategoricalPosterior(torch.einsum("bn,ndk->bdk", joint, onehot).log())


@dataclass
class Prescribed:
    """A noise source whose draws are given, by the names of their stream."""

    draws: dict
    names: tuple = ()
    asked: list = field(default_factory=list)

    def at(self, *names):
        return Prescribed(self.draws, (*self.names, *names), self.asked)

    def uniform(self, like):
        self.asked.append(self.names)
        return self.draws[self.names].expand(like.shape)

    normal = uniform


def kernel(process, states, posterior, t, s):
    """P(x_s^i = k | x_t), (S, D, K + 1): the thresholds of `bridge` in its uniform draws, by bisection."""
    masking = isinstance(process, Masking)

    def moved(u, when=torch.zeros((), dtype=torch.float64)):  # noqa: B008
        given = {("when",): when, ("what",): u} if masking else {(): u}
        return process.bridge(states, posterior, t, s, Prescribed(given))

    def threshold(below):
        """The u at which below(u) turns false, elementwise."""
        low, high = torch.zeros(states.shape).double(), torch.ones(states.shape).double()
        for _ in range(32):
            mid = (low + high) / 2
            inside = below(mid)
            low, high = torch.where(inside, mid, low), torch.where(inside, high, mid)
        return high

    cumulative = torch.stack([threshold(lambda u, k=k: moved(u) <= k) for k in range(K - 1)], -1)
    if not masking:
        padded = torch.nn.functional.pad(cumulative, (1, 1), value=0.0)
        padded[..., -1] = 1
        return padded.diff(dim=-1)
    opened = threshold(lambda u: moved(u * 0 + 0.5, when=u) != K) * (states == K)
    padded = torch.nn.functional.pad(cumulative, (1, 1), value=0.0)
    padded[..., -1] = 1
    stay = torch.nn.functional.one_hot(states, K + 1) * (1 - opened[..., None])
    stay[..., :K] += opened[..., None] * padded.diff(dim=-1)
    return stay


def propagated(process, times):
    """(all states, their exact law after `Bridge` along `times`)."""
    size = K + 1 if isinstance(process, Masking) else K
    states = torch.tensor(list(itertools.product(range(size), repeat=D)))
    law = torch.zeros(len(states)).double()
    if isinstance(process, Masking):
        law[-1] = 1
    else:
        law += 1 / len(states)
    denoiser = Enumerated(process)
    for t, s in itertools.pairwise(times):
        # masked states that no text leads to have no weight and no belief
        live = law > 0
        p = kernel(process, states[live], denoiser(states[live], t), t, s)
        law = torch.einsum("s,sa,sb,sc->abc", law[live], p[:, 0], p[:, 1], p[:, 2]).flatten()
    return states, law


def on_texts(states, law):
    return law[(states < K).all(1)]


def distance(law):
    return float((law - LAW).abs().sum() / 2)


def chi_square(counts, law):
    """p-value of the counts under the law, cells with fewer than 5 expected pooled."""
    expected = np.asarray(law) * counts.sum()
    few = expected < 5
    observed = np.append(np.asarray(counts, dtype=float)[~few], counts[few].sum())
    expected = np.append(expected[~few], expected[few].sum())
    keep = expected > 0
    assert observed[~keep].sum() == 0
    return chi2.sf(((observed - expected)[keep] ** 2 / expected[keep]).sum(), keep.sum() - 1)


def counted(x):
    return np.bincount((x * torch.tensor([K**2, K, 1])).sum(1).numpy(), minlength=K**D)


PROCESSES = [Masking(K), Masking(K, Trig()), UniformTokens(K), UniformTokens(K, Cosine())]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_hand_written_denoiser_is_that_of_the_library(process):
    exact = Atoms(TEXTS, LAW).denoiser(process)
    x = process.corrupt(TEXTS, 0.6, Noise.of(0, len(TEXTS)))
    got, expected = exact(x, 0.6).mean, Enumerated(process)(x, 0.6).mean
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_one_bridge_from_the_exact_posterior_has_the_exact_transition(process):
    """For one position, x_s given x_t through the bridge equals Bayes' rule over (x_0, x_s) written out."""
    t, s = 0.7, 0.3
    keep_t, keep_s = (float(process.schedule.alpha_sigma(u)[0]) for u in (t, s))
    masking, p0 = isinstance(process, Masking), torch.tensor([0.2, 0.5, 0.3]).double()

    def corruption(keep):
        """P(corrupted | clean), and with the mask as a state of its own that is never left."""
        kept = keep * torch.eye(K, dtype=torch.float64)
        if not masking:
            return kept + (1 - keep) / K
        wide = torch.nn.functional.pad(kept, (0, 1, 0, 1), value=1 - keep)
        wide[K] = torch.tensor([0.0] * K + [1.0])
        return wide

    to_s, on = corruption(keep_s)[:K], corruption(keep_t / keep_s)
    # joint over (x_0, x_s, x_t) of the forward chain, conditioned on x_t
    joint = p0[:, None, None] * to_s[:, :, None] * on[None]
    size = K + masking
    states = torch.arange(size)[:, None].expand(size, D).contiguous()
    posterior_p = (joint.sum(1) / joint.sum((0, 1))).T
    posterior = CategoricalPosterior(posterior_p.log()[:, None].expand(size, D, K))
    got = kernel(process, states, posterior, t, s)
    for i in range(D):
        torch.testing.assert_close(got[:, i], (joint.sum(0) / joint.sum((0, 1))).T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_total_variation_falls_at_first_order(process):
    counts, errors = [8, 16, 32], []
    for n in counts:
        states, law = propagated(process, torch.linspace(1, 0, n + 1, dtype=torch.float64).tolist())
        assert float(law.sum()) == pytest.approx(1, abs=1e-9)
        assert float(on_texts(states, law).sum()) == pytest.approx(1, abs=1e-9)
        errors.append(distance(on_texts(states, law)))
    assert 0.9 <= fitted_order(counts, errors) <= 1.2, errors
    assert errors[0] < 0.1


@pytest.mark.parametrize("process", [Masking(K), UniformTokens(K)], ids=repr)
def test_samples_follow_the_propagated_law(process):
    """Three steps: far enough from the data's law for 100,000 samples to tell the two apart."""
    times = torch.linspace(1, 0, 4, dtype=torch.float64).tolist()
    law = on_texts(*propagated(process, times))
    counts = counted(sample(Enumerated(process), shape=(100_000, D), steps=3, solver=Bridge(), seed=11))
    assert chi_square(counts, law) > 1e-3
    assert chi_square(counts, LAW) < 1e-9


@pytest.mark.parametrize("schedule", [Flow(), Trig()], ids=lambda s: s.kind)
def test_one_token_per_step_reproduces_the_joint_law(schedule):
    x = sample(Enumerated(Masking(K, schedule)), shape=(100_000, D), steps=D, solver=Reveal(), seed=5)
    assert chi_square(counted(x), LAW) > 1e-3
    # two tokens in one step do not
    x = sample(Enumerated(Masking(K, schedule)), shape=(100_000, D), steps=2, solver=Reveal(), seed=5)
    assert chi_square(counted(x), LAW) < 1e-9


def test_reveal_opens_the_right_number_of_tokens_and_keeps_those_that_are_given():
    process, seen = Masking(4), []
    exact = Atoms(torch.randint(4, (6, 2, 5), generator=torch.Generator().manual_seed(0))).denoiser(process)
    x = sample(exact, index=range(8), steps=4, solver=Reveal(), on_step=seen.append)
    assert bool((x != process.mask).all())
    hidden = torch.stack([(step.state == process.mask).flatten(1).sum(1) for step in seen])
    assert hidden.tolist() == [[10] * 8, [8] * 8, [5] * 8, [3] * 8]
    # the time that the denoiser is told is the one at which this share is lost
    for step, lost in zip(seen, (10, 8, 5, 3), strict=True):
        assert 1 - float(process.schedule.alpha_sigma(step.t)[0]) == pytest.approx(lost / 10, abs=1e-12)
    x1 = torch.full((8, 2, 5), process.mask)
    x1[:, 0, 0] = exact.distribution.points[3, 0, 0]
    x = sample(exact, x1, steps=3, solver=Reveal())
    assert torch.equal(x[:, 0, 0], x1[:, 0, 0])


def test_bridge_on_a_gaussian_process_is_ddpm():
    from backdrift.sample.sde import DDPM

    denoiser = GaussianData(Cosine(), event_shape=(2,))
    times, count = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64), 40_000
    x1 = denoiser.process.prior(torch.zeros(count, 2).double(), Noise.of(1, count))
    x = Bridge().run(denoiser, x1, times, noise=Noise.of(2, count))
    mean, variance = DDPM().plan(Cosine(), times).law(0.3, 0.25)
    assert float(x.mean()) == pytest.approx(float(mean), abs=5 * float(variance / x.numel()) ** 0.5)
    assert float(x.var()) == pytest.approx(float(variance), rel=5 * (2 / x.numel()) ** 0.5)


# ---------------------------------------------------------------------- a product of a token and a number

PLACES = torch.tensor([-1.0, 0.2, 1.1]).double()
JOINT = torch.tensor([[0.25, 0.05, 0.1], [0.02, 0.2, 0.03], [0.1, 0.05, 0.2]]).double()  # token x place
EDGES = torch.linspace(-5, 5, 401).double()
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2


class Pair(Denoiser):
    """The joint belief about a token and a number, by hand."""

    event_shape = {"token": (1,), "number": (1,)}  # noqa: RUF012
    process = Product({"token": Masking(K), "number": Gaussian(Flow())})

    def forward(self, xt, t, cond=None):
        alpha, sigma = (float(v) for v in Flow().alpha_sigma(t))
        shown = torch.nn.functional.one_hot(xt["token"][:, 0], K + 1).double()
        shown = shown[:, :K] + shown[:, K:]
        close = torch.softmax(-((xt["number"].double() - alpha * PLACES) ** 2) / (2 * sigma**2), -1)
        joint = shown[:, :, None] * JOINT * close[:, None, :]
        joint = joint / joint.sum((1, 2), keepdim=True)
        tokens = CategoricalPosterior(joint.sum(2).log()[:, None])
        return FieldsPosterior({"token": tokens, "number": TensorPosterior((joint.sum(1) @ PLACES)[:, None])})


def nearest_place(x):
    return (x[..., None] - PLACES).abs().argmin(-1)


def pair_law(n):
    """The law of (token, nearest place) after n steps, by pushing a density on a grid through the library's bridge."""
    law = torch.zeros(K + 1, len(CENTRES)).double()
    law[K] = torch.special.ndtr(EDGES).diff()
    token = torch.arange(K + 1).repeat_interleave(len(CENTRES))[:, None]
    x = {"token": token, "number": CENTRES.repeat(K + 1)[:, None]}
    denoiser, process = Pair(), Pair.process
    for t, s in itertools.pairwise(torch.linspace(1, 0, n + 1, dtype=torch.float64).tolist()):
        posterior = denoiser(x, t)
        zero, one = torch.zeros(1).double(), torch.ones(1).double()

        def moved(number, x=x, posterior=posterior, t=t, s=s, zero=zero):
            draws = {("token", "when"): zero, ("token", "what"): zero, ("number",): number}
            return process.bridge(x, posterior, t, s, Prescribed(draws))["number"][:, 0]

        mean, std = moved(zero), moved(one) - moved(zero)
        hidden = (token[:, 0] == K).double()
        probs = torch.nn.functional.one_hot(token[:, 0], K + 1).double() * (1 - hidden)[:, None]
        # the token's own step: opened with probability (t - s) / t under Flow
        probs[:, :K] += (hidden * (t - s) / t)[:, None] * posterior.fields["token"].mean[:, 0]
        probs[:, K] += hidden * s / t
        weighted = law.flatten()[:, None] * probs
        if s == 0:
            out = torch.zeros(K, len(PLACES)).double()
            return out.index_add_(1, nearest_place(mean), weighted[:, :K].T.contiguous())
        spread = torch.special.ndtr((EDGES - mean[:, None]) / std[:, None]).diff(dim=1)
        law = weighted.T @ spread


def test_a_product_of_a_token_and_a_number_converges_at_first_order():
    counts = [8, 16, 32, 64]
    errors = [float((pair_law(n) - JOINT).abs().sum() / 2) for n in counts]
    assert 0.8 <= fitted_order(counts[1:], errors[1:]) <= 1.3, errors


def test_samples_of_the_product_follow_the_propagated_law():
    x = sample(Pair(), index=range(100_000), steps=4, seed=2)
    cells = x["token"][:, 0] * len(PLACES) + nearest_place(x["number"][:, 0].double())
    counts = np.bincount(cells.numpy(), minlength=JOINT.numel())
    assert chi_square(counts, pair_law(4).flatten()) > 1e-3
    assert chi_square(counts, JOINT.flatten()) < 1e-9


def test_the_library_agrees_with_the_pair_written_by_hand():
    points = {"token": torch.arange(K).repeat_interleave(3)[:, None], "number": PLACES.repeat(3)[:, None]}
    exact = Atoms(points, JOINT.flatten()).denoiser(Pair.process)
    x = Pair.process.corrupt(points, 0.5, Noise.of(0, 9))
    got, expected = exact(x, 0.5).mean, Pair()(x, 0.5).mean
    for name in expected:
        torch.testing.assert_close(got[name].double(), expected[name], rtol=0, atol=1e-6)


def test_refusals():
    x1, times = torch.full((2, D), K), torch.tensor([1.0, 0.0])
    for solver in (Bridge(), Reveal()):
        with pytest.raises(UserError, match="stochastic"):
            solver.run(Enumerated(Masking(K)), x1, times)
    with pytest.raises(UserError, match="Reveal serves a Masking process, not UniformTokens"):
        Reveal().run(Enumerated(UniformTokens(K)), x1, times, noise=Noise.of(0, 2))
