import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.posterior import CategoricalPosterior
from backdrift.process import Masking, UniformTokens
from backdrift.process.discrete import draw_categorical
from backdrift.schedule import VE, VP, Cosine, Flow, Shifted, Trig

K = 3
PROCESSES = [Masking(K), Masking(K, Trig()), UniformTokens(K), UniformTokens(K, Shifted(Flow(), 2.0))]
every = pytest.mark.parametrize("process", PROCESSES, ids=str)
TIMES = [(0.25, 0.75), (0.5, 1.0), (0.0, 0.6), (0.7, 0.71)]
SIDE = 80


class Grid:
    """A source whose uniforms are an even grid, so that frequencies are probabilities to within 2 / SIDE.

    The named streams "when" and "what" are the two axes of a square, other draws run over its cells in one line.
    """

    def __init__(self, name=None):
        self.name = name

    def at(self, name):
        return Grid(name)

    def uniform(self, like):
        cells = torch.arange(SIDE * SIDE, dtype=torch.float64)
        place = {"when": (cells // SIDE + 0.5) / SIDE, "what": (cells % SIDE + 0.5) / SIDE}
        return place.get(self.name, (cells + 0.5) / SIDE**2).view(like.shape)


def probabilities(draw, token, size):
    """The law of draw(x), x full of `token`, over 0..size-1."""
    x = torch.full((SIDE * SIDE, 1), token)
    return torch.bincount(draw(x).flatten(), minlength=size).double() / SIDE**2


def states(process):
    return K + isinstance(process, Masking)


def matrix(process, s, t):
    """q(x_t = j | x_s = i) as [i, j], from the definition: kept with alpha_t / alpha_s, otherwise lost."""
    keep = float(process.schedule.alpha_sigma(t)[0] / process.schedule.alpha_sigma(s)[0])
    lost = torch.zeros(states(process), dtype=torch.float64)
    if isinstance(process, Masking):
        lost[K] = 1
    else:
        lost[:] = 1 / K
    return keep * torch.eye(states(process), dtype=torch.float64) + (1 - keep) * lost


def posterior_of(probs, count=SIDE * SIDE):
    return CategoricalPosterior(torch.as_tensor(probs).double().log().expand(count, 1, K))


def test_the_definition_is_a_markov_chain():
    for process, (s, t) in itertools.product(PROCESSES, TIMES):
        many = torch.linspace(s, t, 9).tolist()
        product = torch.linalg.multi_dot([matrix(process, a, b) for a, b in itertools.pairwise(many)])
        torch.testing.assert_close(product, matrix(process, s, t), rtol=1e-6, atol=1e-7)


@every
def test_corruption_has_the_enumerated_law(process):
    for (s, t), token in itertools.product(TIMES, range(states(process))):
        if token < K:
            law = probabilities(lambda x, t=t: process.corrupt(x, t, Grid()), token, states(process))
            torch.testing.assert_close(law, matrix(process, 0.0, t)[token], rtol=0, atol=2 / SIDE)
        law = probabilities(lambda x, s=s, t=t: process.corrupt(x, t, Grid(), start=s), token, states(process))
        torch.testing.assert_close(law, matrix(process, s, t)[token], rtol=0, atol=2 / SIDE)


@every
def test_the_bridge_is_bayes_rule_enumerated(process):
    beliefs = ([0.5, 0.3, 0.2], [0.0, 0.7, 0.3])
    for (s, t), probs, token in itertools.product(TIMES, beliefs, range(states(process))):
        belief = torch.tensor(probs, dtype=torch.float64)
        if isinstance(process, Masking) and token < K:
            if t == 1.0:
                continue  # everything is masked there
            belief = torch.eye(K, dtype=torch.float64)[token]  # a visible token is x_0
        # sum over c of p(x_0 = c | x_t) q(x_s | c) q(x_t | x_s) / q(x_t | c)
        onward, first, whole = matrix(process, s, t)[:, token], matrix(process, 0.0, s), matrix(process, 0.0, t)
        expected = sum(belief[c] * first[c] * onward / whole[c, token] for c in range(K) if belief[c] > 0)
        q = posterior_of(belief)
        law = probabilities(lambda x, q=q, s=s, t=t: process.bridge(x, q, t, s, Grid()), token, states(process))
        # one uniform decides the uniform process, two the mask
        tolerance = 2 / SIDE if isinstance(process, Masking) else 4 / SIDE**2
        torch.testing.assert_close(law, expected, rtol=0, atol=tolerance)
        assert not (law[expected < 1e-12] > 0).any()


@every
def test_a_bridge_to_clean_data_draws_the_belief(process):
    token = K if isinstance(process, Masking) else 1
    belief = torch.tensor([0.2, 0.0, 0.8])
    for t in (0.3, 1.0):
        law = probabilities(
            lambda x, t=t: process.bridge(x, posterior_of(belief), t, 0.0, Grid()), token, states(process)
        )
        torch.testing.assert_close(law[:K], belief.double(), rtol=0, atol=2 / SIDE)
        assert law[1] == 0 and law[K:].sum() == 0


def chi_square(joint, expected):
    """p-value of the counts of a joint law; nothing may fall where the expected probability is 0."""
    joint, expected = np.asarray(joint).ravel(), np.asarray(expected).ravel()
    assert joint[expected == 0].sum() == 0
    seen = expected > 0
    if seen.sum() == 1:
        return 1.0
    return stats.chisquare(joint[seen], expected[seen] * joint.sum()).pvalue


@every
def test_a_chain_of_bridges_with_the_true_x0_keeps_every_marginal(process):
    """Two positions at once with the real source: also a test that positions, steps and streams are independent."""
    count = 20_000
    x0 = torch.tensor([[0, 2]]).expand(count, 2)
    truth = CategoricalPosterior(torch.nn.functional.one_hot(x0, K).double().log())
    noise, x, before = Noise.of(0, count), None, 1.0
    x = process.corrupt(x0, before, noise)
    for step, t in enumerate((0.8, 0.35, 0.1)):
        x = process.bridge(x, truth, before, t, noise.at(step))
        size, q = states(process), matrix(process, 0.0, t)
        joint = torch.bincount(x[:, 0] * size + x[:, 1], minlength=size * size)
        assert chi_square(joint, torch.outer(q[0], q[2])) > 1e-4
        before = t


@every
def test_the_prior_is_the_end_of_the_corruption(process):
    like, noise = torch.zeros(20_000, 2, dtype=torch.long), Noise.of(3, 20_000)
    x1 = process.prior(like, noise)
    assert x1.dtype == torch.long and x1.shape == like.shape
    size, q = states(process), matrix(process, 0.0, 1.0)[0]
    assert chi_square(torch.bincount(x1[:, 0] * size + x1[:, 1], minlength=size**2), torch.outer(q, q)) > 1e-4


@every
def test_times_per_sample_agree_with_one_time_each(process):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(K, (3, 2, 2), generator=generator)
    t, s = torch.tensor([0.4, 0.6, 1.0]).double(), torch.tensor([0.1, 0.0, 0.5]).double()
    belief = CategoricalPosterior(torch.randn(3, 2, 2, K, generator=generator).log_softmax(-1))
    points, noise = torch.randint(K, (5, 2, 2), generator=generator), Noise.of(0, 3)
    xt = process.corrupt(x0, t, noise.at("t"))
    together = (
        xt,
        process.corrupt(x0, t, noise, start=s),
        process.bridge(xt, belief, t, s, noise),
        process.log_likelihood(xt, points, t),
    )
    for i in range(3):
        one, (ti, si), n = slice(i, i + 1), (float(t[i]), float(s[i])), Noise(0, torch.tensor([i]))
        alone = (
            process.corrupt(x0[one], ti, n.at("t")),
            process.corrupt(x0[one], ti, n, start=si),
            process.bridge(xt[one], CategoricalPosterior(belief.log_probs[one]), ti, si, n),
            process.log_likelihood(xt[one], points, ti),
        )
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[one], b, rtol=1e-14, atol=1e-14)


@every
def test_log_likelihood_is_the_log_of_the_enumerated_law(process):
    q = matrix(process, 0.0, 0.6).log()
    points = torch.tensor(list(itertools.product(range(K), repeat=2)))
    xt = torch.tensor(list(itertools.product(range(states(process)), repeat=2)))
    expected = q[points[None, :, 0], xt[:, None, 0]] + q[points[None, :, 1], xt[:, None, 1]]
    got = process.log_likelihood(xt, points, 0.6)
    # equal up to a constant of the row, so the posteriors under a flat prior are equal
    torch.testing.assert_close(got.softmax(1), expected.softmax(1), rtol=1e-12, atol=1e-14)
    assert got.dtype == torch.float64


@every
def test_belief_is_the_weighted_count(process):
    points = torch.tensor([[0, 1], [2, 1], [0, 0]])
    weights = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]).double()
    expected = torch.tensor([[[0.7, 0, 0.3], [0.5, 0.5, 0]], [[1, 0, 0], [0, 1, 0]]]).double()
    torch.testing.assert_close(process.belief(weights, points).mean, expected)


def test_the_losses_are_cross_entropies():
    generator = torch.Generator().manual_seed(0)
    x0, xt = torch.tensor([[0, 1, 2], [2, 2, 0]]), torch.tensor([[0, K, K], [K, 2, 0]])
    log_p = torch.randn(2, 3, K, generator=generator).log_softmax(-1)
    # an impossible value at a visible position costs nothing under masking
    log_p[0, 0] = torch.tensor([-math.inf, -1.0, -0.5])
    masked = Masking(K).loss(CategoricalPosterior(log_p), x0, xt, 0.5)
    torch.testing.assert_close(masked, torch.stack([-log_p[0, 1, 1] - log_p[0, 2, 2], -log_p[1, 0, 2]]))
    log_p[0, 0] = -math.log(K)
    total = UniformTokens(K).loss(CategoricalPosterior(log_p), x0, x0, 0.5)
    expected = torch.nn.functional.cross_entropy(log_p.flatten(0, 1), x0.flatten(), reduction="none").view(2, 3).sum(1)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_of_probability_zero_is_never_drawn(dtype):
    least, most = 2.0**-33, 1 - 2.0**-24
    for probs in ([0, 0.5, 0.5, 0], [0, 0, 1, 0], [1e-30, 0.3, 0.7, 0], [0, 1 / 3, 1 / 3, 1 / 3]):
        p = torch.tensor(probs, dtype=dtype)
        for u in (least, 0.1, 0.25, 0.4999, 0.5, 0.75, most, 1 - 2.0**-53):
            token = draw_categorical(p.log(), torch.tensor(u, dtype=torch.float64))
            assert p[token] > 0, (probs, u)


def test_draws_invert_the_cumulative_sum():
    log_probs = torch.tensor([0.2, 0.5, 0.3]).log().expand(4, 2, 3)
    u = torch.tensor([[0.1, 0.19], [0.21, 0.69], [0.71, 0.99], [0.5, 0.0001]])
    assert draw_categorical(log_probs, u).tolist() == [[0, 0], [1, 1], [2, 2], [1, 0]]


def test_the_mask_is_absorbing_and_forwards():
    process, noise = Masking(K), Noise.of(0, 2)
    masked = torch.full((2, 5), K)
    assert torch.equal(process.corrupt(masked, 0.5, noise, start=0.2), masked)
    for process in PROCESSES:
        with pytest.raises(UserError, match="start lies after"):
            process.corrupt(torch.zeros(2, 5, dtype=torch.long), 0.3, noise, start=0.4)


@every
def test_standing_still_changes_nothing(process):
    x, noise = torch.tensor([[0, 1, 2, 2, 1]] * 50), Noise.of(0, 50)
    belief = CategoricalPosterior(torch.full((50, 5, K), 1 / K).log())
    for t in (0.4, 1.0):
        assert torch.equal(process.corrupt(x, t, noise, start=t), x)
        assert torch.equal(process.bridge(x, belief, t, t, noise), x)


@pytest.mark.parametrize("kind", [Masking, UniformTokens])
def test_what_makes_no_process_is_refused(kind):
    for classes, schedule in ((1, Flow()), (3, VE())):
        with pytest.raises(UserError, match="discrete process"):
            kind(classes, schedule)
    for schedule in (VP(), Trig(), *(Cosine(k / 5000) for k in range(1, 200))):
        kind(3, schedule)
