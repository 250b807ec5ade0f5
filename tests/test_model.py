"""The Python front door: what it draws is what the pieces below it draw, and each sample is its own."""

from dataclasses import replace

import pytest
import torch

import backdrift as bd
from backdrift.model import Model
from backdrift.train.networks import UNetChoice
from backdrift.train.options import for_pictures
from backdrift.train.precision import Precision
from command import TINY

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def model(digits_run):
    return bd.load(digits_run, device="cpu")


def test_python_and_the_command_line_train_the_same(digits_run, model, tmp_path):
    digits = bd.data.digits()
    net = UNetChoice(width=16, multipliers=(1,), blocks=1, attention=())
    options = replace(
        for_pictures(digits), steps=8, batch=8, net=net, precision=Precision.fp32, checkpoint_every=4, sample_every=0
    )
    assert str(8) == str(TINY[TINY.index("--steps") + 1])
    trained = bd.train(digits, options, run=tmp_path / "run", device="cpu", progress=False)
    assert trained.classes == tuple("0123456789") and trained.event_shape == (1, 8, 8)
    assert torch.equal(trained.sample(2, label=5, steps=2), model.sample(2, label=5, steps=2))
    again = bd.load(tmp_path / "run", device="cpu")
    assert torch.equal(again.sample(2, steps=2), model.sample(2, steps=2))


def test_the_model_file_alone_is_enough(digits_run, model):
    alone = bd.load(digits_run / "model.safetensors", device="cpu")
    assert alone.classes == model.classes and alone.folder is None and model.folder == digits_run
    assert torch.equal(alone.sample(2, label="7", steps=2), model.sample(2, label=7, steps=2))


def test_a_sample_is_the_same_in_any_batch_and_order(model):
    label = [i % 10 for i in range(16)]
    whole = model.sample(16, label=label, guidance=2.0, steps=4, seed=3)
    for batch in (1, 3, 7):
        torch.testing.assert_close(
            model.sample(16, label=label, guidance=2.0, steps=4, seed=3, batch=batch), whole, **CLOSE
        )
    order = [11, 2, 7]
    some = model.sample(index=order, label=[label[i] for i in order], guidance=2.0, steps=4, seed=3)
    torch.testing.assert_close(some, whole[order], **CLOSE)
    assert (whole[0] - whole[1]).abs().max() > 0.1
    assert (model.sample(16, label=label, guidance=2.0, steps=4, seed=4) - whole).abs().max() > 0.1
    stochastic = model.sample(6, steps=4, solver=bd.solvers.DDPM(), seed=3)
    again = model.sample(6, steps=4, solver=bd.solvers.DDPM(), seed=3, batch=4)
    torch.testing.assert_close(again, stochastic, **CLOSE)


def test_unconditional_is_the_network_without_label(model):
    plain = bd.sample(model.denoiser, index=range(4), steps=4, seed=1)
    assert torch.equal(model.sample(4, steps=4, seed=1), plain)
    null = {"label": torch.full((4,), 10)}
    torch.testing.assert_close(bd.sample(model.denoiser, index=range(4), steps=4, cond=null, seed=1), plain, **CLOSE)


def test_guided_samples_are_the_lerp_of_two_calls(model):
    class Manual(bd.Denoiser):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.process, self.event_shape = inner, inner.process, inner.event_shape
            self.sigma_data = inner.sigma_data

        def forward(self, xt, t, cond=None):
            without, given = self.inner(xt, t), self.inner(xt, t, cond)
            return replace(given, mean=without.mean + 3.0 * (given.mean - without.mean))

    label = [1, 8, 8, 0]
    expected = bd.sample(Manual(model.denoiser), index=range(4), steps=4, cond={"label": torch.tensor(label)})
    torch.testing.assert_close(model.sample(4, label=label, guidance=3.0, steps=4), expected, **CLOSE)
    followed = bd.sample(model.denoiser, index=range(4), steps=4, cond={"label": torch.tensor(label)})
    assert torch.equal(model.sample(4, label=label, steps=4), followed)


def test_labels_by_number_name_and_tensor():
    model = Model(exact_denoiser(), ("cat", "dog", "7"))
    assert model.labels("dog", 2).tolist() == [1, 1] and model.labels(["cat", 1], 2).tolist() == [0, 1]
    assert model.labels(torch.tensor([2, 0]), 2).tolist() == [2, 0] and model.labels(range(3), 3).tolist() == [0, 1, 2]
    # a name wins over a number, so that class folders called by numbers are asked for by those
    assert model.labels("7", 1).tolist() == [2] and model.labels("0", 1).tolist() == [0]
    assert model.labels(None, 4) is None
    for bad in (3, -1, "bird", "7.5"):
        with pytest.raises(bd.UserError, match="There is no label"):
            model.labels(bad, 1)
    with pytest.raises(bd.UserError, match="2 labels for 3 samples"):
        model.labels([0, 1], 3)
    with pytest.raises(bd.UserError, match="trained without labels"):
        Model(exact_denoiser()).labels(0, 1)


def exact_denoiser():
    points = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0]])
    process = bd.process.Gaussian(bd.schedule.Cosine())
    return bd.exact.Atoms(points, labels=torch.tensor([0, 1, 2])).denoiser(process)


def test_a_model_of_exact_data_draws_the_picture_that_is_asked_for():
    model = Model(exact_denoiser(), ("a", "b", "c"))
    torch.testing.assert_close(
        model.sample(3, label=["c", "a", "b"], steps=20),
        torch.tensor([[1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]]),
        rtol=0,
        atol=1e-3,
    )


def test_mistakes(model, tmp_path):
    for words, arguments in [
        ("Say how many samples", {}),
        ("at least one sample", {"n": 0}),
        ("names 2 samples, but 3", {"n": 3, "index": [1, 2]}),
        ("no sample -1", {"index": [-1]}),
        ("needs a condition", {"n": 2, "guidance": 2.0}),
        ("A batch has at least one", {"n": 2, "batch": 0}),
        ("either a plan or a solver", {"n": 2, "solver": bd.solvers.DDIM(), "plan": plan(model)}),
        ("made for", {"n": 2, "plan": bd.solvers.DDIM().plan(bd.schedule.VP(), [1.0, 0.0])}),
    ]:
        with pytest.raises(bd.UserError, match=words):
            model.sample(**arguments)
    with pytest.raises(bd.UserError, match="no run folder"):
        bd.load(tmp_path / "nowhere")
    with pytest.raises(bd.UserError, match="cannot be used here"):
        bd.load(model.folder, device="abacus")


def plan(model):
    return bd.solvers.DDIM().plan(model.denoiser.process.schedule, [1.0, 0.0])
