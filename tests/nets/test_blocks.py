"""Norms, attention and embeddings against torch's own operations, finite differences and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from backdrift.errors import UserError
from backdrift.nets import blocks

NOISE = torch.linspace(0, math.pi / 2, 1572)  # 1e-3 apart


def randomise(module):
    """Parameters away from their special starting values."""
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module


def both_ways(module, x, monkeypatch):
    fused = module(x)
    monkeypatch.setattr(blocks, "plain_arithmetic", lambda: True)
    return fused, module(x)


def group_norm_reference(x, m):
    return F.group_norm(x, m.groups, m.weight, m.bias, m.eps)


def layer_norm_reference(x, m):
    return F.layer_norm(x, x.shape[-1:], m.weight, m.bias, m.eps)


def rms_norm_reference(x, m):
    return F.rms_norm(x, x.shape[-1:], m.weight, m.eps)


NORMS = [
    (lambda: blocks.GroupNorm(32), (3, 32, 5, 4), group_norm_reference),
    (lambda: blocks.GroupNorm(48, affine=False), (3, 48, 7), group_norm_reference),
    (lambda: blocks.LayerNorm(24), (3, 5, 24), layer_norm_reference),
    (lambda: blocks.LayerNorm(24, affine=False), (3, 24), layer_norm_reference),
    (lambda: blocks.RMSNorm(24), (3, 5, 24), rms_norm_reference),
]


@pytest.mark.parametrize("make, shape, reference", NORMS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_norms_equal_torch_on_both_ways(make, shape, reference, dtype, tolerance, monkeypatch):
    torch.manual_seed(0)
    module = randomise(make()).to(dtype)
    x = (3 + 2 * torch.randn(shape, dtype=torch.float64)).to(dtype)
    exact = reference(x.double(), module.double())
    module.to(dtype)
    for y in both_ways(module, x, monkeypatch):
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance * 3)


def test_plain_norm_keeps_its_statistics_in_float32(monkeypatch):
    """A mean of 100 and a deviation of 1: squares summed in bf16 would lose the deviation altogether."""
    monkeypatch.setattr(blocks, "plain_arithmetic", lambda: True)
    torch.manual_seed(0)
    x = (100 + torch.randn(2, 16, 30, 30)).bfloat16()
    y = blocks.GroupNorm(16, affine=False)(x).float()
    assert abs(y.mean()) < 1e-2
    assert abs(y.std() - 1) < 1e-2


def test_norms_in_channels_last_equal_contiguous(monkeypatch):
    x = torch.randn(2, 32, 6, 5)
    y = both_ways(blocks.GroupNorm(32), x, monkeypatch)
    monkeypatch.undo()
    z = both_ways(blocks.GroupNorm(32), x.to(memory_format=torch.channels_last), monkeypatch)
    for a, b in zip(y, z, strict=True):
        torch.testing.assert_close(a, b)


def test_group_norm_refuses_a_width_it_cannot_split():
    with pytest.raises(UserError, match="40 channels"):
        blocks.GroupNorm(40)


def attention_reference(q, k, v):
    """One query at a time, in float64 loops over the batch of heads."""
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:-1])).tolist():
        head, query = tuple(index[:-1]), tuple(index)
        weights = torch.exp(k[head].double() @ q[query].double() / math.sqrt(q.shape[-1]))
        out[query] = weights @ v[head].double() / weights.sum()
    return out


@pytest.mark.parametrize("tokens", [5, 300])  # plain arithmetic for the first, the fused kernel for the second
def test_attention_equals_the_definition(tokens):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 3, 8), torch.randn(2, 2, tokens, 8), torch.randn(2, 2, tokens, 6)
    expected = attention_reference(q, k, v)
    torch.testing.assert_close(blocks.attention(q, k, v).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [6, 300])
def test_masked_attention_equals_attention_to_the_rest(tokens):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 3, 8), torch.randn(2, 2, tokens, 8), torch.randn(2, 2, tokens, 6)
    seen = torch.rand(2, tokens) < 0.5
    seen[:, 0] = True
    y = blocks.attention(q, k, v, seen[:, None, None])
    for i in range(2):
        expected = attention_reference(q[i : i + 1], k[i : i + 1, :, seen[i]], v[i : i + 1, :, seen[i]])
        torch.testing.assert_close(y[i : i + 1].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [6, 300])
def test_attention_has_a_forward_derivative_at_any_length(tokens):
    torch.manual_seed(0)
    q, k, v, dq, dk, dv = torch.randn(6, 1, 2, tokens, 4, dtype=torch.float64)
    _, slope = torch.func.jvp(blocks.attention, (q, k, v), (dq, dk, dv))
    h = 1e-5
    ahead = blocks.attention(q + h * dq, k + h * dk, v + h * dv)
    behind = blocks.attention(q - h * dq, k - h * dk, v - h * dv)
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


def test_forward_differentiation_is_noticed_wherever_it_is_active():
    assert not blocks.plain_arithmetic()
    seen = []

    def probe(x):
        seen.append(blocks.plain_arithmetic())
        return x.sum()

    x = torch.ones(2)
    torch.func.jvp(probe, (x,), (x,))
    torch.func.jvp(torch.func.grad(probe), (x,), (x,))
    torch.func.grad(probe)(x)
    with torch.no_grad():
        torch.func.jvp(probe, (x,), (x,))
    assert seen == [True, True, False, True]
    assert not blocks.plain_arithmetic()


def test_modulate():
    y, scale, shift = torch.randn(2, 3, 4, 5), torch.randn(2, 3), torch.randn(2, 3)
    expected = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(blocks.modulate(y, scale, shift), expected)
    tokens, scale, shift = torch.randn(2, 5, 3), torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    torch.testing.assert_close(blocks.modulate(tokens, scale, shift), tokens * (1 + scale) + shift)


def test_softened_log_ratio_is_antisymmetric_and_its_slope_is_bounded():
    w = NOISE.double()
    d = blocks.SOFTENING
    u = blocks.softened_log_ratio(w)
    torch.testing.assert_close(u, -blocks.softened_log_ratio(math.pi / 2 - w))
    _, slope = torch.func.jvp(blocks.softened_log_ratio, (w,), (torch.ones_like(w),))
    closed = w.cos() / (w.sin() + d) + w.sin() / (w.cos() + d)
    torch.testing.assert_close(slope, closed)
    assert slope.max() <= 1 / d + 1
    assert (w.sin() * w.cos() * slope).max() <= 1


def test_noise_features_tell_neighbours_apart_everywhere():
    """Levels 1e-3 apart differ by more than float32 or bf16 weights blur, and more at the two ends than between."""
    features = blocks.noise_features(NOISE, 128)
    assert features.shape == (len(NOISE), 128)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.square().mean(1), torch.ones(len(NOISE)))
    gap = (features[1:] - features[:-1]).square().mean(1).sqrt()
    assert gap.min() > 5e-3
    assert gap[0] > 0.1
    assert gap[-1] > 0.1
    far = torch.cdist(features[::20], features[::20]) / math.sqrt(128)
    assert far[~torch.eye(len(far), dtype=torch.bool)].min() > 0.1  # no two distant levels share an embedding


def test_embedding_stays_precise_with_bf16_weights():
    torch.manual_seed(0)
    low = blocks.Conditioning(64).bfloat16()
    with torch.no_grad():
        e = low(NOISE)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(low(NOISE), e)
    assert e.dtype == torch.float32
    torch.testing.assert_close(e, low.double()(NOISE.double()).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "label, words",
    [
        (torch.tensor([0, 4]), "0..2"),
        (torch.tensor([-1, 0]), "0..2"),
        (torch.tensor([0]), "one per sample"),
        (torch.tensor([0.0, 1.0]), "integers"),
    ],
)
def test_bad_labels_are_refused(label, words):
    with pytest.raises(UserError, match=words):
        blocks.Conditioning(32, classes=3)(torch.rand(2), {"label": label})


def test_a_label_for_a_network_without_classes_is_refused():
    with pytest.raises(UserError, match="without classes"):
        blocks.Conditioning(32)(torch.rand(1), {"label": torch.tensor([0])})
