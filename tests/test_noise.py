import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from backdrift.noise import _MASK, SMALL, Noise, _mix, brownian, mix

BIG = (SMALL + 1,)
SHAPES = [(), (1,), (3,), (3, 5), (SMALL,), BIG]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def normal(index, shape=(4,), seed=0, dtype=torch.float32, names=()):
    index = torch.as_tensor(index, dtype=torch.long)
    return Noise(seed, index).at(*names).normal(torch.empty(len(index), *shape, dtype=dtype))


def uniform(index, shape=(4,), seed=0, dtype=torch.float32):
    index = torch.as_tensor(index, dtype=torch.long)
    return Noise(seed, index).uniform(torch.empty(len(index), *shape, dtype=dtype))


def correlation(x, y):
    return float(np.corrcoef(np.ravel(x), np.ravel(y))[0, 1])


# --- the hash


def test_mix_is_splitmix64():
    # the published first outputs of SplitMix64 started at 0 and at 1234567
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4
    assert mix(1234567) == 6457827717110365317


def test_mix_is_a_bijection():
    def unshift(value, shift):
        result = value
        for _ in range(64 // shift + 1):
            result = value ^ (result >> shift)
        return result

    for value in (0, 1, 2**63, _MASK, 0x0123456789ABCDEF, *(k * 0x9E3779B97F4A7C15 & _MASK for k in range(50))):
        back = unshift(mix(value), 31) * pow(0x94D049BB133111EB, -1, 2**64) & _MASK
        back = unshift(back, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & _MASK
        assert unshift(back, 30) - 0x9E3779B97F4A7C15 & _MASK == value


def test_the_tensor_hash_is_the_same_function():
    values = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789012345678], dtype=torch.long)
    expected = [mix(v & _MASK) for v in values.tolist()]
    assert [v & _MASK for v in _mix(values.clone()).tolist()] == expected


def test_each_input_bit_flips_half_of_the_output():
    flips = [(mix(v) ^ mix(v ^ (1 << bit))).bit_count() for bit in range(64) for v in range(0, 6400, 64)]
    assert np.mean(flips) == pytest.approx(32, abs=0.3)
    per_bit = np.reshape(flips, (64, 100)).mean(1)
    assert per_bit.min() > 29.5 and per_bit.max() < 34.5


# --- keyed by sample


@every_shape
def test_a_sample_is_the_same_in_any_batch_and_any_order(shape):
    whole, other = normal(range(64), shape), uniform(range(64), shape)
    for index in ([7], [63, 0, 7, 7], range(63, -1, -1), range(10, 17)):
        assert torch.equal(normal(index, shape), whole[list(index)])
        assert torch.equal(uniform(index, shape), other[list(index)])


@every_shape
def test_both_precisions_see_the_same_draws(shape):
    assert torch.equal(normal(range(8), shape), normal(range(8), shape, dtype=torch.float64).float())
    assert torch.equal(uniform(range(8), shape), uniform(range(8), shape, dtype=torch.float64).float())
    assert normal(range(8), shape, dtype=torch.float64).dtype == torch.float64


def test_the_shape_of_an_event_only_folds_it():
    assert torch.equal(normal(range(3), (2, 6)).flatten(1), normal(range(3), (12,)))
    like = torch.empty(3, SMALL + 2)
    assert torch.equal(Noise.of(0, 3).normal(like.view(3, 2, -1)).flatten(1), Noise.of(0, 3).normal(like))


def test_the_caller_keeps_its_tensors():
    index, like = torch.tensor([5, 3]), torch.full((2, 4), 7.0)
    noise = Noise(0, index)
    first = noise.normal(like)
    assert torch.equal(noise.normal(like), first) and torch.equal(noise.at(1).normal(like), noise.at(1).normal(like))
    assert index.tolist() == [5, 3] and bool((like == 7).all())


def test_a_batch_of_another_size_is_refused():
    for draw in (Noise.of(0, 3).normal, Noise.of(0, 3).uniform):
        with pytest.raises(ValueError, match="3 samples"):
            draw(torch.empty(4, 2))


@pytest.mark.parametrize("shape", [(6,), BIG], ids=str)
def test_seeds_streams_and_distant_samples_all_differ(shape):
    seeds = (0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**33, 2**63)
    index = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**40 + 1, 2**62]
    names = ((), (0,), (1,), (0, 0), (0, 1), (1, 0), ("x",), ("y",), (2**32,), (2**32 + 1,), ("x", 1), (1, "x"))
    rows = torch.cat([normal(index, shape, seed, names=name) for seed, name in itertools.product(seeds, names)])
    # compared by their first numbers: two draws of a float32 normal agree in five places with chance 1e-30
    assert len(torch.unique(rows[:, :5], dim=0)) == len(seeds) * len(names) * len(index)


def test_a_seed_and_a_stream_do_not_commute():
    like, index = torch.empty(1, 4), torch.tensor([0])
    assert not torch.equal(Noise(0, index, stream=5).normal(like), Noise(5, index, stream=0).normal(like))
    assert not torch.equal(Noise(2, index, stream=5).normal(like), Noise(3, index, stream=4).normal(like))


def test_a_name_is_an_integer_or_a_word():
    assert Noise.of(0, 1).at(3).stream == Noise.of(0, 1).at(np.int64(3)).stream
    assert Noise.of(0, 1).at(3, "x").stream == Noise.of(0, 1).at(3).at("x").stream
    with pytest.raises(TypeError):
        Noise.of(0, 1).at(0.5)


def test_no_two_of_many_samples_share_their_noise():
    rows = normal(range(100_000), (2,))
    # two float32 as one int64: a row is one number
    assert len(torch.unique(rows.view(torch.int64))) == 100_000
    # the large events' generators are seeded by 32 bits: their words are a bijection, so a set of first draws is too
    first = normal(range(2000), BIG)[:, :2].contiguous()
    assert len(torch.unique(first.view(torch.int64))) == 2000


# --- laws, at fixed seeds; bounds are five standard errors or a p-value of 1e-4


@pytest.mark.parametrize(
    "draw",
    [
        lambda: normal(range(100_000), (1,)),  # over samples
        lambda: normal(range(1000), (100,)),
        lambda: normal([0, 5], (SMALL,)),  # over elements
        lambda: normal(range(100), BIG),
        lambda: torch.cat([normal([3], (10,), names=(k,)) for k in range(2000)]),  # over steps
        lambda: torch.cat([normal([3], (10,), seed=k) for k in range(2000)]),  # over seeds
    ],
)
def test_normal_draws_are_normal(draw):
    x = draw().double().flatten().numpy()
    n = len(x)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * math.sqrt(variance / n)
    assert stats.kstest(x, "norm").pvalue > 1e-4


@pytest.mark.parametrize(
    "draw", [lambda: uniform(range(100_000), (1,)), lambda: uniform(range(100), (999,)), lambda: uniform([1], (5000,))]
)
def test_uniform_draws_are_uniform(draw):
    assert stats.kstest(draw().double().flatten().numpy(), "uniform").pvalue > 1e-4


def test_the_tail_is_there_and_finite():
    x = normal(range(2000), (1000,)).double().flatten().abs()
    for bound in (3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * len(x)
        assert abs(int((x > bound).sum()) - expected) < 5 * math.sqrt(expected)
    assert 4.5 < x.max() < 7


def every_word(monkeypatch, words, dtype=torch.float32):
    """A source that answers with the given 32-bit words."""
    monkeypatch.setattr(Noise, "_words", lambda self, size, device: words.view(1, -1)[:, :size].clone())
    like = torch.empty(1, words.numel(), dtype=dtype)
    return Noise.of(0, 1).normal(like), Noise.of(0, 1).uniform(like)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_extreme_words_give_finite_normals_and_uniforms_inside(monkeypatch, dtype):
    ends = [-(2**31) + k for k in range(200)] + [2**31 - 1 - k for k in range(100)] + list(range(-100, 100))
    radius = torch.tensor(ends, dtype=torch.int32)
    for turn in (torch.full_like(radius, 12345), radius):
        z, u = every_word(monkeypatch, torch.cat([radius, turn]), dtype)
        assert bool(z.isfinite().all()) and z.abs().max() < 7
        assert bool((u > 0).all() & (u < 1).all())


def test_the_radius_is_rayleigh_over_the_whole_range_of_words(monkeypatch):
    """Box-Muller by its definition, in float64: the share of words that give a radius above r is exp(-r^2 / 2)."""
    words = torch.linspace(-(2**31), 2**31 - 1, 500, dtype=torch.float64).round().int()
    z, _ = every_word(monkeypatch, torch.cat([words, torch.zeros_like(words)]))
    radius = z[0, :500].double().abs()
    for r in (0.5, 1.0, 2.0):
        assert float((radius > r).double().mean()) == pytest.approx(math.exp(-r * r / 2), abs=0.005)


def test_the_second_word_turns_once_around(monkeypatch):
    words = torch.linspace(-(2**31), 2**31 - 1, 501, dtype=torch.float64).round().int()
    z, _ = every_word(monkeypatch, torch.cat([torch.full_like(words, 2**30), words]))
    angle, radius = math.pi * words.double() / 2**31, math.sqrt(2 * math.log(2))
    torch.testing.assert_close(z[0, :501].double(), radius * angle.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(z[0, 501:].double(), radius * angle.sin(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(40,), BIG], ids=str)
def test_neighbours_are_independent(shape):
    count = 800 if shape != BIG else 50
    a = normal(range(count), shape).numpy()
    bound = 5 / math.sqrt(a.size)
    pairs = {
        "next sample": (a[:-1], a[1:]),
        "next element": (a[:, :-1], a[:, 1:]),
        "half an event apart": (a[:, : shape[0] // 2], a[:, shape[0] // 2 : shape[0] // 2 * 2]),
        "next seed": (a, normal(range(count), shape, seed=1).numpy()),
        "seed 2^32": (a, normal(range(count), shape, seed=2**32).numpy()),
        "sample 2^32": (a, normal(range(2**32, 2**32 + count), shape).numpy()),
        "step 0": (a, normal(range(count), shape, names=(0,)).numpy()),
        "step 0 and 1": (
            normal(range(count), shape, names=(0,)).numpy(),
            normal(range(count), shape, names=(1,)).numpy(),
        ),
        "one sample on, one seed on": (a[1:], normal(range(count - 1), shape, seed=1).numpy()),
    }
    for name, (x, y) in pairs.items():
        assert abs(correlation(x, y)) < bound * math.sqrt(a.size / x.size), name
        assert abs(correlation(np.square(x), np.square(y))) < bound * math.sqrt(a.size / x.size), name


def test_a_sample_and_its_noise_have_full_rank():
    # 100 samples of 100 numbers: the spectrum of a white matrix follows Marchenko and Pastur, up to 4
    for shape in ((100,), BIG):
        x = normal(range(100), shape)[:, :100].double()
        assert torch.linalg.eigvalsh(x.T @ x / 100)[-1] < 4.6


# --- Brownian paths


def increments(clock, shape=(3,), seed=0, count=2, dtype=torch.float64):
    like = torch.empty(count, *shape, dtype=dtype)
    return torch.stack(list(brownian(Noise.of(seed, count), clock, like)))


def even(count):
    return [float(k) for k in range(count + 1)]


def uneven(count):
    return [0.3 * k + 0.11 * math.sin(3 * k) for k in range(count + 1)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 20, 31, 32])
def test_there_is_one_increment_per_interval(count):
    drawn = list(brownian(Noise.of(0, 2), uneven(count), torch.empty(2, 3)))
    assert len(drawn) == count and all(x.shape == (2, 3) and x.dtype == torch.float32 for x in drawn)


@pytest.mark.parametrize("clock", [even, uneven])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 8, 12])
def test_increments_have_their_variance_and_are_independent(count, clock):
    clock = clock(count)
    w = increments(clock, shape=(1000,), count=40).flatten(1).numpy()
    n = w.shape[1]
    whitened = w / np.sqrt(np.diff(clock))[:, None]
    cov = whitened @ whitened.T / n
    assert np.abs(np.diag(cov) - 1).max() < 5 * math.sqrt(2 / n)
    assert np.abs(cov - np.diag(np.diag(cov))).max() < 5 / math.sqrt(n)
    # levels may not depend on one another beyond the covariance
    square = np.square(whitened) - 1
    off = square @ square.T / (2 * n)
    assert np.abs(off - np.diag(np.diag(off))).max(initial=0) < 5 / math.sqrt(n)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8])
def test_cutting_every_interval_follows_the_same_path(count):
    coarse = uneven(count)
    fine = [coarse[0]]
    for k, (low, high) in enumerate(itertools.pairwise(coarse)):
        share = (0.5, 0.1, 0.83)[k % 3]
        fine += [low + share * (high - low), high]
    finest = [fine[0]]
    for k, (low, high) in enumerate(itertools.pairwise(fine)):
        finest += [low + (0.3, 0.6)[k % 2] * (high - low), high]
    a, b, c = (increments(clock) for clock in (coarse, fine, finest))
    torch.testing.assert_close(b.unflatten(0, (count, 2)).sum(1), a, rtol=0, atol=1e-14)
    torch.testing.assert_close(c.unflatten(0, (count, 4)).sum(1), a, rtol=0, atol=1e-14)


def test_a_clock_may_fall_and_may_stand_still():
    falling = increments([4.0, 2.5, 1.0, 0.5, 0.0], shape=(1000,), count=40)
    rising = increments([0.0, 1.5, 3.0, 3.5, 4.0], shape=(1000,), count=40)
    torch.testing.assert_close(falling, rising, rtol=0, atol=1e-14)
    still = increments([0.0, 1.0, 1.0, 1.0, 1.0])
    assert bool(still[0].abs().min() > 0) and bool((still[1:].abs() < 1e-14).all())
    assert bool((increments([2.0, 2.0, 2.0]).abs() < 1e-14).all())


def test_a_path_is_the_same_in_any_batch_and_whatever_the_consumer_does_to_it():
    whole = increments(uneven(6), count=5)
    noise = Noise(0, torch.tensor([4, 1]))
    for n, x in enumerate(brownian(noise, uneven(6), torch.empty(2, 3, dtype=torch.float64))):
        torch.testing.assert_close(x, whole[n][[4, 1]], rtol=0, atol=0)
        x.zero_()
