"""Whole trainings: what the guard says, what a run folder holds, and who may load it."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backdrift.errors import UserError
from backdrift.run import Run, load_network
from backdrift.train.guard import NonFinite
from backdrift.train.loop import train
from backdrift.train.networks import FileNet, UNetChoice

OWN = """
from torch import nn
class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Conv2d(shape[0], shape[0], 3, padding=1)
        self.classes = classes
    def forward(self, x, noise, cond=None):
        return self.layer(x)
"""


class Explodes(nn.Module):
    """Divides by what is zero from the third call on, forwards or backwards."""

    def __init__(self, forwards):
        super().__init__()
        self.forwards, self.calls = forwards, 0

    def forward(self, x):
        self.calls += 1
        if self.calls < 3:
            return x
        return x / 0 if self.forwards else x + 0 * (x * 0).abs().sqrt()


@pytest.mark.parametrize(
    "forwards, culprit",
    [(True, "the output of the layer bad"), (False, "the gradient at the output of the layer enter")],
)
def test_guard_names_step_batch_and_layer_and_keeps_the_checkpoint(
    tmp_path, pictures, options, tiny, forwards, culprit
):
    net = tiny()
    net.bad = Explodes(forwards)

    class Bad(type(net)):
        def forward(self, x, noise, cond=None):
            h = self.bad(self.enter(torch.cat([x.flatten(1), noise[:, None]], 1))) + self.label(cond["label"])
            return self.leave(self.drop(h.tanh())).view(x.shape)

    net.__class__ = Bad
    with pytest.raises(NonFinite, match="stopped at step 3, before its update: " + culprit) as stopped:
        train(pictures, replace(options, checkpoint_every=1), run=tmp_path, net=net)
    assert stopped.value.step == 3 and len(stopped.value.pictures) == 16
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    assert max(p.name for p in Run(tmp_path).checkpoints.iterdir()) == "step-0000002.safetensors"
    assert all(bool(v.isfinite().all()) for v in load_network(tmp_path, net=copy.deepcopy(net)).state_dict().values())


def test_memory_that_runs_out_says_which_batch_fits(pictures, options, tiny):
    net = tiny()

    def hungry(module, inputs):
        if len(inputs[0]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    net.enter.register_forward_pre_hook(hungry)
    with pytest.raises(UserError, match=r"with 16 pictures at once; 4 fit: use a batch of 4, .* in 4 parts"):
        train(pictures, options, net=net)


def test_a_run_can_be_used_from_its_folder_alone(tmp_path, pictures, options):
    choice = UNetChoice(width=16, multipliers=(1,), blocks=1, attention=())
    options = replace(options, net=choice, steps=3)
    trained = train(pictures, options, run=tmp_path / "run", command=["backdrift", "train"])
    run = trained.run
    assert run.options() == options and run.config()["command"] == ["backdrift", "train"]
    x, t = torch.ones(2, 1, 4, 4), torch.tensor([0.3, 0.9], dtype=torch.float64)
    cond = {"label": torch.tensor([0, 3])}
    for path in (tmp_path / "run", run.model_path):
        loaded = load_network(path)
        assert not loaded.training and loaded.sigma_data == pictures.split()[0].std
        assert torch.equal(loaded(x, t, cond).mean, trained.network(x, t, cond).mean)
    started = train(pictures, options, run=tmp_path / "next", start_from=run)
    assert started.config["start_from"] == str(run.folder)
    before = torch.cat([p.flatten() for p in trained.network.parameters()])
    after = torch.cat([p.flatten() for p in started.network.parameters()])
    assert 0 < float((before - after).abs().max()) < 0.02


def test_training_lowers_the_loss_on_held_out_pictures(tmp_path, pictures, options):
    one = torch.arange(50, dtype=torch.uint8)[:, None, None, None] * 5
    flat = replace(pictures, pixels=one.expand(50, 1, 4, 4).contiguous())
    choice = UNetChoice(width=16, multipliers=(1,), blocks=1, attention=())
    trained = train(flat, replace(options, net=choice, steps=60, lr=5e-3, validate_every=20), run=tmp_path)
    curve = [r["validation_loss"] for r in trained.run.metrics() if "validation_loss" in r]
    assert len(curve) == 3 and curve[2] < 0.7 and curve[2] < curve[0] < 1  # a network that says nothing has 1


def test_own_network_from_a_file_is_loaded_only_when_named_again(tmp_path, pictures, options):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    options = replace(options, net=FileNet.of(f"{file}:Net"), steps=2)
    run = train(pictures, options, run=tmp_path / "run").run
    with pytest.raises(UserError, match=r"mine\.py:Net"):
        load_network(run.folder)
    assert isinstance(load_network(run.folder, net=FileNet.of(f"{file}:Net")).net.layer, nn.Conv2d)
    file.write_text(OWN + "# changed\n")
    with pytest.raises(UserError, match=r"net\.sha256"):
        train(pictures, replace(options, net=FileNet.of(f"{file}:Net")), run=tmp_path / "run")
    file.unlink()
    with pytest.raises(UserError, match=r"mine\.py cannot be read"):
        FileNet.of(f"{file}:Net")


@pytest.mark.parametrize(
    "source, complaint",
    [
        ("Net = 3", "Net must"),
        ("x = 1", "defines no Net"),
        ("1 / 0", "ZeroDivisionError"),
        ("def Net(): pass", "accept"),
    ],
)
def test_own_networks_that_cannot_be_built(tmp_path, source, complaint):
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(UserError, match=complaint):
        FileNet.of(f"{file}:Net").build((1, 4, 4), 0)
    with pytest.raises(UserError, match=r"my_file\.py:Net"):
        FileNet.of("Net")


def test_folders_that_are_no_runs(tmp_path, pictures, options, tiny):
    (tmp_path / "photo.png").write_text("x")
    with pytest.raises(UserError, match=r"is not empty and holds no run \(it has photo.png\)"):
        train(pictures, options, run=tmp_path, net=tiny())
    with pytest.raises(UserError, match="There is no"):
        load_network(tmp_path)
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged"):
        load_network(tmp_path)
    save_file({"x": torch.zeros(1)}, model, metadata={"backdrift": json.dumps({"format": 99, "backdrift": "9.0"})})
    with pytest.raises(UserError, match=r"newer backdrift \(9.0\)"):
        load_network(model)


def test_callers_random_state_is_left_alone(pictures, options):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    choice = UNetChoice(width=16, multipliers=(1,), blocks=1, attention=(), dropout=0.1)
    a = train(pictures, replace(options, net=choice, steps=2))
    assert torch.equal(torch.rand(3), expected)
    b = train(pictures, replace(options, net=choice, steps=2))
    assert all(torch.equal(p, q) for p, q in zip(a.network.parameters(), b.network.parameters(), strict=True))
