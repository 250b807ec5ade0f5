import math

import pytest
import torch

from backdrift.posterior import CategoricalPosterior, FieldsPosterior, TensorPosterior, expand, flat

INF = math.inf


def tensors(shape=(3, 2, 4)):
    generator = torch.Generator().manual_seed(1)
    return (TensorPosterior(torch.randn(shape, generator=generator, dtype=torch.float64)) for _ in range(2))


def categories(shape=(3, 2, 5)):
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return (CategoricalPosterior(value.log_softmax(-1)) for value in logits)


def log(*rows):
    return CategoricalPosterior(torch.tensor(rows, dtype=torch.float64).log())


@pytest.mark.parametrize("pair", [tensors, categories])
def test_weights_0_and_1_return_the_very_objects(pair):
    a, b = pair()
    assert a.lerp(b, 0) is a and a.lerp(b, 0.0) is a
    assert a.lerp(b, 1) is b and a.lerp(b, 1.0) is b


def test_tensors_extrapolate_their_means():
    a, b = tensors()
    for w in (-0.5, 0.3, 2.0, 7.5):
        torch.testing.assert_close(a.lerp(b, w).mean, (1 - w) * a.mean + w * b.mean, rtol=1e-13, atol=1e-13)
    w = torch.tensor([0.0, 1.0, 3.0])
    mixed = a.lerp(b, w).mean
    assert torch.equal(mixed[0], a.mean[0]) and torch.equal(mixed[1], b.mean[1])
    torch.testing.assert_close(mixed[2], 3 * b.mean[2] - 2 * a.mean[2])


def test_the_learned_variance_is_the_conditional_one():
    a, b = tensors()
    fraction = torch.full_like(b.mean, 0.3)
    assert a.lerp(TensorPosterior(b.mean, fraction), 2.0).fraction is fraction
    assert TensorPosterior(a.mean, fraction).lerp(b, 2.0).fraction is None


def test_categories_are_tempered_and_renormalised():
    a, b = categories()
    for w in (-0.5, 0.3, 2.0, 7.5):
        p = a.mean ** (1 - w) * b.mean**w
        q = a.lerp(b, w)
        torch.testing.assert_close(q.mean, p / p.sum(-1, keepdim=True), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(q.mean.sum(-1), torch.ones(3, 2, dtype=torch.float64))


def test_two_coins_by_hand():
    q = log([0.5, 0.5]).lerp(log([0.8, 0.2]), 2.0)
    torch.testing.assert_close(q.mean, torch.tensor([[16 / 17, 1 / 17]]).double())


@pytest.mark.parametrize("w", [-1.0, 0.5, 2.0, torch.tensor([0.5]), torch.tensor([2.0])])
def test_what_either_finds_impossible_stays_impossible(w):
    a, b = log([0.5, 0.3, 0.0, 0.2, 0.0]), log([0.25, 0.0, 0.25, 0.5, 0.0])
    q = a.lerp(b, w)
    p = torch.tensor([0.5, 0.2]).double() ** (1 - w) * torch.tensor([0.25, 0.5]).double() ** w
    assert torch.equal(q.log_probs[0, [1, 2, 4]], torch.full((3,), -INF).double())
    torch.testing.assert_close(q.mean[0, [0, 3]], p / p.sum())


def test_weights_per_sample_agree_with_one_weight_each():
    a, b = categories((4, 2, 5))
    a.log_probs[:, 0, 1], b.log_probs[:, 1, 2] = -INF, -INF
    a, b = (CategoricalPosterior(q.log_probs.log_softmax(-1)) for q in (a, b))
    weights = torch.tensor([0.0, 1.0, 0.4, 3.0])
    mixed = a.lerp(b, weights).log_probs
    for i, w in enumerate(weights.tolist()):
        one = CategoricalPosterior(a.log_probs[i : i + 1]).lerp(CategoricalPosterior(b.log_probs[i : i + 1]), w)
        # float32 weights are exact for 0, 1 and 3 and off by 1e-8 for 0.4
        torch.testing.assert_close(mixed[i : i + 1], one.log_probs, rtol=1e-7, atol=1e-7)


def test_beliefs_without_a_common_category_end_in_the_second():
    a = log([[1.0, 0.0, 0.0], [0.2, 0.4, 0.4]], [[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]])
    b = log([[0.0, 0.5, 0.5], [0.2, 0.4, 0.4]], [[0.3, 0.7, 0.0], [0.1, 0.9, 0.0]])
    # wherever they do overlap the two agree here, so that any weight gives the second
    for w in (0.5, 2.0, torch.tensor([0.5, 2.0])):
        torch.testing.assert_close(a.lerp(b, w).mean, b.mean)


def test_fields_are_mixed_one_by_one():
    (a, b), (c, d) = tensors(), categories()
    mixed = FieldsPosterior({"x": a, "kind": c}).lerp(FieldsPosterior({"x": b, "kind": d}), 2.0)
    assert set(mixed.mean) == {"x", "kind"}
    assert torch.equal(mixed.mean["x"], a.lerp(b, 2.0).mean)
    assert torch.equal(mixed.fields["kind"].log_probs, c.lerp(d, 2.0).log_probs)


def test_expand_aligns_with_the_batch_and_keeps_precision():
    like = torch.zeros(3, 2, 2, dtype=torch.float64)
    assert expand(0.1, like).item() == 0.1 and expand(0.1, like).dtype == torch.float64
    per_sample = expand(torch.tensor([1.0, 2.0, 3.0]), like)
    assert per_sample.shape == (3, 1, 1) and per_sample.dtype == torch.float64
    assert expand(torch.tensor(2.0).double(), like.float()).dtype == torch.float32


def test_flat_keeps_the_batch():
    assert flat(torch.zeros(3, 2, 4)).shape == (3, 8)
    assert flat(torch.zeros(3)).shape == (3, 1)
    assert flat(torch.zeros(0, 2, 4)).shape == (0, 8)
