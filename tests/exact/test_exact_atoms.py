"""Atoms against enumeration in float64, over noise levels, schedules and processes."""

import itertools
import math

import pytest
import torch

from backdrift import schedule
from backdrift.errors import UserError
from backdrift.exact import Atoms, streaming
from backdrift.process import Centred, Gaussian, Masking, Product, UniformTokens

SCHEDULES = [
    schedule.VP(), schedule.Cosine(), schedule.VE(), schedule.EDM(), schedule.Flow(), schedule.Trig(),
    schedule.Shifted(schedule.Flow(), 3.0), schedule.Tabulated.linear(),
]  # fmt: skip
NAMES = [type(s).__name__ for s in SCHEDULES]


def cloud(count=60, event=(2, 3), dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    points = torch.randn(count, *event, generator=rng, dtype=torch.float64).to(dtype)
    weights = torch.rand(count, generator=rng, dtype=torch.float64)
    return points, weights


def enumerated(points, weights, x, alpha, sigma, h=0.0):
    """(mean, score, log p, r), with every distance by differences in float64."""
    y, x = points.double().flatten(1), x.double().flatten(1)
    v = alpha**2 * h**2 + sigma**2
    logits = (weights.double() / weights.double().sum()).log() - (x[:, None] - alpha * y).square().sum(-1) / (2 * v)
    r = logits.softmax(1)
    means = y + alpha * h**2 / v * (x[:, None] - alpha * y)
    mean = (r[..., None] * means).sum(1)
    score = (r[..., None] * (alpha * y - x[:, None])).sum(1) / v
    return mean, score, logits.logsumexp(1) - x.shape[1] / 2 * math.log(2 * math.pi * v), r


@pytest.mark.parametrize("h", [0.0, 0.2])
@pytest.mark.parametrize("sch", SCHEDULES, ids=NAMES)
def test_atoms_are_the_enumeration(sch, h):
    points, weights = cloud()
    denoiser = Atoms(points, weights, h).denoiser(Gaussian(sch))
    for t in (0.001, 0.05, 0.3, 0.7, 1.0):
        x = denoiser.draw(4, t, seed=3)
        alpha, sigma = (float(v) for v in sch.alpha_sigma(t))
        mean, score, log_prob, r = enumerated(points, weights, x, alpha, sigma, h)
        for got, want in (
            (denoiser(x, t).mean.flatten(1), mean),
            (denoiser.score(x, t).flatten(1), score),
            (denoiser.log_prob(x, t), log_prob),
            (denoiser.posterior_weights(x, t), r),
        ):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("h", [0.0, 0.2])
def test_derivatives(h):
    points, weights = cloud()
    denoiser = Atoms(points, weights, h).denoiser(Gaussian(schedule.VP()))
    for t in (0.1, 0.4):
        x = denoiser.draw(3, t).requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)
        torch.testing.assert_close(gradient, denoiser.score(x, t), rtol=1e-9, atol=1e-9)
        check = torch.autograd.gradcheck
        assert check(lambda x, t=t: denoiser(x, t).mean, x, check_forward_ad=True, atol=1e-6, rtol=1e-4)
        assert check(lambda x, t=t: denoiser.log_prob(x, t), x, check_forward_ad=True, atol=1e-6, rtol=1e-4)


def test_the_two_ends():
    points, weights = cloud()
    for sch in (schedule.VP(), schedule.Flow(), schedule.Cosine()):
        denoiser = Atoms(points, weights).denoiser(Gaussian(sch))
        near = points[:5] + 1e-3
        assert torch.equal(denoiser(near, 0.0).mean, points[:5])
        with pytest.raises(UserError):
            denoiser.score(near, 0.0)
        smooth = Atoms(points, weights, 0.3).denoiser(Gaussian(sch))
        torch.testing.assert_close(smooth(near, 0.0).mean, near)
        assert torch.isfinite(smooth.score(near, 0.0)).all()
    for distribution in (Atoms(points, weights), Atoms(points, weights, 0.3)):
        mean = distribution.denoiser(Gaussian(schedule.Flow()))(near, 1.0).mean
        expected = ((weights / weights.sum())[:, None, None] * points).sum(0)
        torch.testing.assert_close(mean, expected.expand_as(mean))
    pair = Atoms(torch.tensor([[-1.0], [1.0], [5.0]]))
    assert pair.denoiser(Gaussian(schedule.Flow()))(torch.zeros(1, 1), 0.0).mean == 0
    with pytest.raises(UserError):
        pair.log_prob(torch.zeros(1, 1))


@pytest.mark.parametrize("case", ["plain", "near duplicates", "far away", "far near-duplicates", "blocks"])
def test_float32_stream_against_float64(case, monkeypatch):
    rng = torch.Generator().manual_seed(1)
    points = torch.randn(400, 48, generator=rng)
    if "duplicates" in case:
        points[100:160] = points[100] + 1e-3 * torch.randn(60, 48, generator=rng)
    if "far" in case:
        points = points + 1000.0
    if case == "blocks":
        monkeypatch.setattr(streaming, "BLOCK", 37)
    denoiser = Atoms(points).denoiser(Gaussian(schedule.EDM()))
    for sigma in (0.002, 0.01, 0.1, 1.0, 5.0, 80.0):
        t = schedule.EDM().time(-2 * math.log(sigma)).clamp(0, 1)
        noise = torch.randn(6, 48, generator=rng)
        x = points[[0, 100, 101, 120, 150, 399]] + sigma * noise
        mean, score, log_prob, _ = enumerated(points, torch.ones(400), x, 1.0, sigma)
        size = float(points.abs().max())
        got = denoiser(x, t)
        # one rounding of the answer, and logits that are off by at most 1e-6 where they have weight
        torch.testing.assert_close(got.mean.double(), mean, rtol=0, atol=2e-7 * size + 1e-6)
        torch.testing.assert_close(denoiser.score(x, t).double(), score, rtol=2e-6, atol=1e-6 / sigma)
        torch.testing.assert_close(denoiser.log_prob(x, t).double(), log_prob, rtol=1e-6, atol=2e-6)
    x = (points[[0, 100]] + 0.05).requires_grad_()
    t = float(schedule.EDM().time(-2 * math.log(0.01)))
    (gradient,) = torch.autograd.grad(denoiser(x, t).mean[:, 0].sum(), x)
    mean, _, _, r = enumerated(points, torch.ones(400), x, 1.0, 0.01)
    y = points.double()
    exact = torch.einsum("bn,bnd,bn->bd", r, y - mean[:, None], y[:, 0] - mean[:, :1]) / 0.01**2
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-4)


def test_points_far_from_the_origin_need_no_second_pass(monkeypatch):
    rng = torch.Generator().manual_seed(2)
    points = torch.randn(400, 48, generator=rng) + 1000.0
    denoiser = Atoms(points).denoiser(Gaussian(schedule.EDM()))
    monkeypatch.setattr(streaming, "TOLERANCE", math.inf)
    for sigma in (3.0, 10.0, 80.0):
        x = points[:6] + sigma * torch.randn(6, 48, generator=rng)
        mean = enumerated(points, torch.ones(400), x, 1.0, sigma)[0]
        got = denoiser(x, float(schedule.EDM().time(-2 * math.log(sigma)))).mean
        torch.testing.assert_close(got.double(), mean, rtol=1.2e-7, atol=0)


def test_batch_independence_and_dtype():
    points, weights = cloud(dtype=torch.float32)
    denoiser = Atoms(points, weights).denoiser(Gaussian(schedule.VP()))
    t = torch.tensor([0.05, 0.2, 0.5, 0.9])
    x = denoiser.draw(4, t)
    together = denoiser(x, t).mean
    assert together.dtype == denoiser.log_prob(x, t).dtype == torch.float32
    alone = torch.cat([denoiser(x[i : i + 1], float(t[i])).mean for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert torch.equal(denoiser.draw(2, 0.3), denoiser.draw(4, 0.3)[:2])


def test_labels_restrict_the_atoms():
    points, weights = cloud()
    labels = torch.arange(60) % 3
    whole = Atoms(points, weights, 0.1, labels).denoiser(Gaussian(schedule.VP()))
    x = whole.draw(4, 0.5)
    cond = {"label": torch.tensor([0, 1, 2, 3])}
    parts = [Atoms(points[labels == k], weights[labels == k], 0.1) for k in range(3)]
    parts = [p.denoiser(Gaussian(schedule.VP())) for p in [*parts, whole.distribution]]
    for verb in ("score", "log_prob"):
        expected = torch.cat([getattr(p, verb)(x[i : i + 1], 0.5) for i, p in enumerate(parts)])
        torch.testing.assert_close(getattr(whole, verb)(x, 0.5, cond), expected, rtol=1e-9, atol=1e-10)
    expected = torch.cat([p(x[i : i + 1], 0.5).mean for i, p in enumerate(parts)])
    torch.testing.assert_close(whole(x, 0.5, cond).mean, expected, rtol=1e-9, atol=1e-10)
    few = Atoms(points, weights, labels=labels).draw(50, cond={"label": torch.tensor([0, 1] * 25)})
    owner = (few[:, None] == points).flatten(2).all(2).long().argmax(1)
    assert labels[owner].tolist() == [0, 1] * 25
    with pytest.raises(UserError):
        Atoms(points).denoiser(Gaussian(schedule.VP()))(x, 0.5, cond)


def test_draws_follow_the_weights():
    atoms = Atoms(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.2, 0.0, 0.8]))
    drawn = atoms.draw(20_000, seed=4)
    assert not bool((drawn == 1).any())
    assert float((drawn == 2).double().mean()) == pytest.approx(0.8, abs=0.012)
    smooth = Atoms(torch.zeros(1, 1), bandwidth=0.5).draw(20_000)
    assert float(smooth.std()) == pytest.approx(0.5, abs=0.012)


WORDS = torch.tensor([[0, 1, 2], [0, 0, 0], [2, 1, 1], [1, 1, 1], [0, 1, 2]])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 1.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("kind", [Masking, UniformTokens])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.8, 1.0])
def test_tokens_are_bayes_rule(kind, t):
    process = kind(3)
    denoiser = Atoms(WORDS, WEIGHTS).denoiser(process)
    keep = 1 - t  # the schedule is Flow

    def chance(seen: int, true: int) -> float:
        if kind is Masking:
            return (1 - t) if seen == true else t if seen == 3 else 0.0
        return keep * (seen == true) + (1 - keep) / 3

    for xt in itertools.product(range(4 if kind is Masking else 3), repeat=3):
        joint = [
            float(w) * math.prod(chance(a, b) for a, b in zip(xt, word, strict=True))
            for w, word in zip(WEIGHTS, WORDS.tolist(), strict=True)
        ]
        if sum(joint) == 0:
            continue
        expected = torch.zeros(3, 3, dtype=torch.float64)
        for p, word in zip(joint, WORDS.tolist(), strict=True):
            for place, token in enumerate(word):
                expected[place, token] += p / sum(joint)
        got = denoiser(torch.tensor([xt]), t).mean[0]
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_impossible_tokens_say_nothing():
    denoiser = Atoms(WORDS, WEIGHTS).denoiser(Masking(3))
    weights = denoiser.posterior_weights(torch.tensor([[2, 2, 2]]), 0.5)
    torch.testing.assert_close(weights[0], WEIGHTS / WEIGHTS.sum())
    atoms = Atoms(WORDS, WEIGHTS)
    assert atoms.log_prob(WORDS[:1]).exp() == pytest.approx(1.5 / 7.5)
    assert torch.isneginf(atoms.log_prob(torch.tensor([[2, 2, 2]]))).all()


def test_product_of_tokens_and_a_tensor(monkeypatch):
    places = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = {"word": WORDS, "place": places}
    process = Product({"word": UniformTokens(3), "place": Gaussian(schedule.VP())})
    labels = torch.tensor([0, 0, 1, 1, 1])
    denoiser = Atoms(points, WEIGHTS, labels=labels).denoiser(process)
    t = 0.4
    xt = denoiser.draw(6, t)
    alpha, sigma = schedule.VP().alpha_sigma(t)
    gaps = (xt["place"][:, None] - alpha * places).square().sum(-1)
    same = (0.6 * (xt["word"][:, None] == WORDS).double() + 0.4 / 3).log().sum(-1)
    logits = WEIGHTS.log() + same - gaps / (2 * sigma**2)
    for size in (1 << 24, 1):
        monkeypatch.setattr("backdrift.exact.denoiser.BLOCK", size)
        belief = denoiser(xt, t)
        torch.testing.assert_close(belief.fields["place"].mean, logits.softmax(1) @ places, rtol=1e-9, atol=1e-10)
        onehot = torch.nn.functional.one_hot(WORDS, 3).double()
        expected = torch.einsum("bn,ndk->bdk", logits.softmax(1), onehot)
        torch.testing.assert_close(belief.fields["word"].mean, expected, rtol=1e-9, atol=1e-10)
    second = logits.masked_fill(labels != 1, -torch.inf).softmax(1)
    got = denoiser.posterior_weights(xt, t, {"label": torch.tensor(1)})
    torch.testing.assert_close(got, second, rtol=1e-9, atol=1e-12)


def test_bad_atoms_are_refused():
    points = torch.zeros(3, 2)
    for arguments in (
        (torch.zeros(0, 2),),
        (points, torch.ones(2)),
        (points, torch.tensor([1.0, -1.0, 1.0])),
        (points, None, -0.1),
        (points.int(),),
        (points.long(), None, 0.1),
        (torch.full((3, 2), float("inf")),),
        ({"a": points, "b": torch.zeros(2, 2)},),
        (points, None, 0.0, torch.tensor([0, 1])),
    ):
        with pytest.raises(UserError):
            Atoms(*arguments)
    for atoms, process in (
        (Atoms(points), Masking(3)),
        (Atoms(points.long()), Gaussian(schedule.VP())),
        (Atoms(torch.ones(3, 4, 3)), Gaussian(schedule.VP(), Centred())),
        (Atoms(torch.zeros(3, 4, 3), bandwidth=0.1), Gaussian(schedule.VP(), Centred())),
    ):
        with pytest.raises(UserError):
            atoms.denoiser(process)
    with pytest.raises(UserError):
        Atoms(points).denoiser(Gaussian(schedule.VP()))(torch.zeros(1, 3), 0.5)


def test_centred_atoms_under_a_centred_process():
    points, weights = cloud(event=(4, 3))
    points = points - points.mean(1, keepdim=True)
    denoiser = Atoms(points, weights).denoiser(Gaussian(schedule.VP(), Centred()))
    x = denoiser.draw(3, 0.5)
    torch.testing.assert_close(x.mean(1), torch.zeros(3, 3).double(), rtol=0, atol=1e-12)
    alpha, sigma = (float(v) for v in schedule.VP().alpha_sigma(0.5))
    torch.testing.assert_close(denoiser(x, 0.5).mean.flatten(1), enumerated(points, weights, x, alpha, sigma)[0])
    with pytest.raises(UserError):
        denoiser.log_prob(x, 0.5)
