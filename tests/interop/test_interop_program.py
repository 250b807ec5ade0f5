"""What an export says is what our sampler does: the JSON and the network's file, run by the page's own NumPy."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import backdrift as bd
from backdrift.interop.foreign import Angle, Convention, Entry, Foreign
from backdrift.interop.program import ONNX, PT2, Program, compiled, export, write_plan
from backdrift.nets import MLP, DiT, MPUNet, UNet

FLAT = {"width": 16, "multipliers": (1,), "blocks": 1, "attention": ()}
DEEP = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_width": 16}
PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def runner():
    """The function of docs/export.md, and how many lines it takes."""
    code = re.search(r"```python\n(import json.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    names: dict = {}
    exec(compile(code, "export.md", "exec"), names)
    return names["sample"], len(code.splitlines())


def network(net=None, target=None, schedule=None, **options):
    torch.manual_seed(0)
    net = net or MLP(3, width=16, blocks=1, classes=4)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    process = bd.process.Gaussian(schedule or bd.schedule.Cosine())
    shape = options.pop("shape", (3,))
    return bd.Network(net, process, target or bd.target.EDM_F(0.4), shape, 0.4, **options).eval().requires_grad_(False)


def as_numpy(program):
    """A network as the page's NumPy calls it."""

    def net(*inputs):
        with torch.no_grad():
            return program(*(torch.from_numpy(np.asarray(v)) for v in inputs)).numpy()

    return net


LABEL = [3, 0, 2, 2, 4]  # 4 is none


def check(denoiser, plan, net, document, guidance=1.0, label=LABEL):
    """The page's NumPy against our sampler, from the same draws."""
    sample, _ = runner()
    torch.manual_seed(1)
    count = 5
    x1 = torch.randn(count, *denoiser.event_shape)
    xis = torch.randn(len(plan.noise_intervals), count, *denoiser.event_shape)
    cond = None if label is None else {"label": torch.tensor(label)}
    steered = denoiser if guidance == 1 else bd.guide.ClassifierFree(denoiser, guidance)
    expected = plan.run(steered, document["network"]["start_std"] * x1, cond, noise=list(xis)).numpy()
    made = sample(net, document, x1.numpy(), xis.numpy(), None if label is None else np.array(label))
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-4)
    assert np.abs(made).max() < 100 and np.abs(made).std() > 1e-3


def test_the_page_takes_forty_lines():
    _, lines = runner()
    assert lines <= 40


@pytest.mark.parametrize(
    "target",
    [bd.target.EDM_F(0.4), bd.target.X0(), bd.target.V(), bd.target.VELOCITY()],
    ids=lambda t: type(t).__name__,
)
@pytest.mark.parametrize("solver", [bd.solvers.UniPC(2), bd.solvers.DDPM()], ids=repr)
def test_the_numbers_of_a_plan_say_what_the_sampler_does(tmp_path, target, solver):
    denoiser = network(target=target)
    plan = compiled(denoiser, 6, solver)
    write_plan(tmp_path / "plan.json", denoiser, plan, "none", 1.0)
    document = json.loads((tmp_path / "plan.json").read_text())
    check(denoiser, plan, as_numpy(Program(denoiser)), document)
    # it is still a plan of ours
    assert bd.Plan.load(tmp_path / "plan.json").times.equal(plan.times)


def test_a_foreign_network_is_told_its_own_numbers(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x, told, cond):
            return torch.sin(x) * (1 + told[:, None] / 1000)

    table = bd.schedule.Tabulated.linear()
    denoiser = Foreign(Net(), Convention(table, bd.target.V(), Entry(1000)), (3,))
    plan = compiled(denoiser, 5)
    write_plan(tmp_path / "plan.json", denoiser, plan, "none", 1.0)
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["network"]["noise"][0] == 999 and document["network"]["scale"] == [1.0] * 5
    check(denoiser, plan, as_numpy(Program(denoiser)), document, label=None)


def test_the_angle_clock_is_our_networks():
    class Told(torch.nn.Module):
        def forward(self, x, noise, cond):
            self.seen = x, noise
            return x

    net, x = Told(), torch.randn(3, 3)
    denoiser = network(net, schedule=bd.schedule.EDM(), target=bd.target.X0())
    for t in (0.1, 0.7, 1.0):
        denoiser(x, t)
        clock = Angle(0.4)
        shown, told = clock.scale(denoiser.process.schedule, t), clock.told(denoiser.process.schedule, t)
        torch.testing.assert_close(net.seen[0], x * float(shown))
        torch.testing.assert_close(net.seen[1], told.float().expand(3))
        assert abs(float(clock.time(denoiser.process.schedule, told)) - t) < 1e-12


def test_guidance_is_inside(tmp_path):
    denoiser = network()
    plan = compiled(denoiser, 4).with_guidance(2.5)
    write_plan(tmp_path / "plan.json", denoiser, plan, "none", 2.5)
    document = json.loads((tmp_path / "plan.json").read_text())
    check(denoiser, plan, as_numpy(Program(denoiser, 2.5)), document, guidance=2.5)


def test_a_learned_variance_is_left_out(tmp_path):
    net = UNet(1, outputs=2, classes=4, **FLAT)
    denoiser = network(net, shape=(1, 4, 4), learned_variance=True)
    plan = compiled(denoiser, 3)
    write_plan(tmp_path / "plan.json", denoiser, plan, "none", 1.0)
    document = json.loads((tmp_path / "plan.json").read_text())
    check(denoiser, plan, as_numpy(Program(denoiser)), document)


@pytest.mark.slow
def test_a_file_of_torchs_own(tmp_path):
    denoiser = network()
    plan = compiled(denoiser, 5)
    made = export(denoiser, plan, tmp_path, PT2(), guidance=2.0)
    assert made.gap < 1e-5
    document = json.loads(made.plan.read_text())
    check(denoiser, plan, as_numpy(torch.export.load(tmp_path / document["network"]["file"]).module()), document, 2.0)


NETS = {
    "UNet": (lambda: UNet(2, classes=4, **DEEP), (2, 6, 4)),
    "UNet resampling": (lambda: UNet(1, classes=4, residual_resampling=True, **DEEP), (1, 5, 5)),
    "UNet 1-D": (lambda: UNet(1, dims=1, classes=4, **FLAT), (1, 7)),
    "UNet 3-D": (lambda: UNet(1, dims=3, classes=4, **FLAT), (1, 3, 3, 3)),
    "MPUNet": (lambda: MPUNet(1, classes=4, **DEEP), (1, 4, 4)),
    "DiT": (lambda: DiT(1, width=32, depth=2, head_width=16, classes=4), (1, 5, 4)),
    "MLP": (lambda: MLP(3, width=16, classes=4), (3,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_every_network_is_exported_by_torch(tmp_path, name):
    build, shape = NETS[name]
    denoiser = network(build(), shape=shape)
    assert export(denoiser, compiled(denoiser, 3), tmp_path, PT2()).gap < 1e-5


@pytest.mark.interop
@pytest.mark.parametrize("name", NETS)
def test_every_network_runs_in_onnx_runtime(tmp_path, name):
    runtime = pytest.importorskip("onnxruntime")
    build, shape = NETS[name]
    denoiser = network(build(), shape=shape)
    plan = compiled(denoiser, 10)
    made = export(denoiser, plan, tmp_path, ONNX(), guidance=1.5)
    assert made.gap < 1e-5
    session = runtime.InferenceSession(made.network)
    names = [value.name for value in session.get_inputs()]
    assert names == ["x", "noise", "label"]
    document = json.loads(made.plan.read_text())
    check(denoiser, plan, lambda *v: session.run(None, dict(zip(names, v, strict=True)))[0], document, guidance=1.5)


@pytest.mark.interop
def test_a_foreign_network_is_exported(tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("onnxruntime")
    import diffusers as df
    from test_interop_real import saved, unet

    folder = saved(tmp_path / "model", unet(num_class_embeds=5), df.DDIMScheduler())
    denoiser = bd.interop.diffusers.load(folder, none=4)
    plan = compiled(denoiser, 5)
    for format in (PT2(), ONNX()):
        made = export(denoiser, plan, tmp_path / "out", format, guidance=2.0)
        assert made.gap < 1e-5


def test_the_command_line(cli, digits_run, tmp_path):
    done = cli("export", digits_run, "--steps", 4, "--format", "pt2", "--out", tmp_path)
    assert done.status == 0 and "network.pt2" in done.out, done
    model = bd.load(digits_run, device="cpu")
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["network"]["classes"] == 10 and document["network"]["shape"] == [1, 8, 8]
    program = torch.export.load(tmp_path / "network.pt2").module()
    check(model.denoiser, bd.Plan.load(tmp_path / "plan.json"), as_numpy(program), document, label=[1, 2, 10, 9, 0])


def test_mistakes(refused, digits_run, tmp_path):
    assert "no format 'onx' (did you mean onnx?)" in refused("export", digits_run, "--format", "onx")
    assert "is no table of numbers" in refused("export", digits_run, "--solver", "bridge", "--format", "pt2")
    if importlib.util.find_spec("onnx") is None:
        assert "pip install 'backdrift[onnx]'" in refused("export", digits_run, "--out", tmp_path)
    denoiser = network()
    plan = compiled(denoiser, 2)
    exact = bd.exact.Gaussian(torch.zeros(3), 1.0).denoiser(bd.process.Gaussian(bd.schedule.VP()))
    tokens = network(DiT(1, width=32, depth=1, head_width=16, tokens=4), shape=(1, 4, 4))
    estimating = network(UNet(2, outputs=1, **FLAT), shape=(1, 4, 4), self_conditioning=True)
    for words, arguments in [
        ("Only a network can be exported, not TensorDenoiser", (exact, plan)),
        ("condition tokens cannot be exported", (tokens, plan)),
        ("self-conditioned", (estimating, plan)),
        ("made for", (network(schedule=bd.schedule.VP()), plan)),
        ("guidance 3.0, but 1.0", (denoiser, plan.with_guidance(3.0))),
    ]:
        with pytest.raises(bd.UserError, match=words):
            export(*arguments, tmp_path / "none", PT2())
    with pytest.raises(bd.UserError, match="knows labels"):
        export(network(MLP(3, width=16)), plan, tmp_path / "none", PT2(), guidance=2.0)


def test_a_layer_that_cannot_be_expressed(tmp_path):
    class Moody(torch.nn.Module):
        def forward(self, x, noise, cond):
            return x if float(x.sum()) > 0 else -x

    denoiser = network(Moody())
    with pytest.raises(bd.UserError, match="Moody cannot be exported: ") as raised:
        export(denoiser, compiled(denoiser, 2), tmp_path / "none", PT2())
    assert "\n" not in str(raised.value) and not (tmp_path / "none").exists()
