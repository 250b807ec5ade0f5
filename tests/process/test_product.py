import pytest
import torch

from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.posterior import CategoricalPosterior, FieldsPosterior, TensorPosterior
from backdrift.process import Gaussian, Masking, Product, UniformTokens
from backdrift.schedule import VP, Flow

FIELDS = {"x": Gaussian(VP()), "y": Gaussian(Flow()), "label": Masking(3), "letters": UniformTokens(4)}
PROCESS = Product(FIELDS)
COUNT = 5


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(COUNT, 2, 3, generator=generator),
        "y": torch.randn(COUNT, 2, 3, generator=generator),
        "label": torch.randint(3, (COUNT,), generator=generator),
        "letters": torch.randint(4, (COUNT, 6), generator=generator),
    }


def posterior(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return FieldsPosterior(
        {
            "x": TensorPosterior(torch.randn(COUNT, 2, 3, generator=generator)),
            "y": TensorPosterior(torch.randn(COUNT, 2, 3, generator=generator)),
            "label": CategoricalPosterior(torch.randn(COUNT, 3, generator=generator).log_softmax(-1)),
            "letters": CategoricalPosterior(torch.randn(COUNT, 6, 4, generator=generator).log_softmax(-1)),
        }
    )


def equal(a, b):
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_each_verb_is_the_fields_own_under_the_fields_own_key():
    noise, x0, q = Noise.of(7, COUNT), state(), posterior()
    xt = PROCESS.corrupt(x0, 0.6, noise)
    equal(xt, {name: p.corrupt(x0[name], 0.6, noise.at(name)) for name, p in FIELDS.items()})
    equal(PROCESS.prior(x0, noise), {name: p.prior(x0[name], noise.at(name)) for name, p in FIELDS.items()})
    again = PROCESS.corrupt(xt, 0.8, noise, start=0.6)
    equal(again, {name: p.corrupt(xt[name], 0.8, noise.at(name), 0.6) for name, p in FIELDS.items()})
    back = PROCESS.bridge(xt, q, 0.6, 0.2, noise)
    equal(back, {n: p.bridge(xt[n], q.fields[n], 0.6, 0.2, noise.at(n)) for n, p in FIELDS.items()})


def test_losses_and_likelihoods_add_up():
    noise, x0, q = Noise.of(7, COUNT), state(), posterior()
    xt, points = PROCESS.corrupt(x0, 0.6, noise), state(2)
    t = torch.tensor([0.6, 0.6, 0.7, 0.8, 0.9]).double()
    total = sum(p.loss(q.fields[n], x0[n], xt[n], t) for n, p in FIELDS.items())
    torch.testing.assert_close(PROCESS.loss(q, x0, xt, t), total)
    assert PROCESS.loss(q, x0, xt, t).shape == (COUNT,)
    together = sum(p.log_likelihood(xt[n], points[n], t) for n, p in FIELDS.items())
    torch.testing.assert_close(PROCESS.log_likelihood(xt, points, t), together)
    assert together.shape == (COUNT, COUNT)


def test_fields_of_the_same_kind_draw_apart():
    process = Product({"a": Gaussian(Flow()), "b": Gaussian(Flow())})
    like = {"a": torch.zeros(4, 500), "b": torch.zeros(4, 500)}
    x = process.prior(like, Noise.of(0, 4))
    correlation = torch.corrcoef(torch.stack([x["a"].flatten(), x["b"].flatten()]))[0, 1]
    assert abs(correlation) < 5 / 2000**0.5
    # a field's draw depends on its name, not on its place or on its neighbours
    equal({"b": x["b"]}, Product({"b": Gaussian(Flow())}).prior({"b": like["b"]}, Noise.of(0, 4)))


def test_the_belief_is_every_fields_marginal():
    points, weights = state(2), torch.rand(3, COUNT, dtype=torch.float64).softmax(1)
    belief = PROCESS.belief(weights, points)
    for name, p in FIELDS.items():
        torch.testing.assert_close(belief.mean[name], p.belief(weights, points[name]).mean)


def test_a_state_with_other_fields_is_refused():
    noise, x0 = Noise.of(0, COUNT), state()
    del x0["y"]
    for call in (lambda: PROCESS.corrupt(x0, 0.5, noise), lambda: PROCESS.prior(state() | {"z": x0["x"]}, noise)):
        with pytest.raises(UserError, match="has the fields"):
            call()
    with pytest.raises(UserError, match="at least one"):
        Product({})
