"""Folders of diffusers without diffusers: stand-ins with its call signature, beside config files written by hand."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import backdrift as bd

DDIM = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
REPORT = {"missing_keys": [], "unexpected_keys": []}


class StandIn(nn.Module):
    """What diffusers' networks share: made from a folder, called with a sample and time steps."""

    report: dict = REPORT

    def __init__(self, config):
        super().__init__()
        self.config, self.seen = config, None
        self.weight = nn.Parameter(torch.tensor(0.5))

    @classmethod
    def from_pretrained(cls, folder, use_safetensors, low_cpu_mem_usage, output_loading_info):
        assert use_safetensors and output_loading_info
        with open(f"{folder}/config.json") as file:
            return cls(json.load(file)), cls.report


class UNet2DModel(StandIn):
    def forward(self, sample, timestep, class_labels=None):
        self.seen = timestep
        said = torch.sin(sample) * (1 + self.weight * timestep.float()[:, None, None, None] / 1000)
        if class_labels is not None:
            said = said + class_labels[:, None, None, None]
        return SimpleNamespace(sample=said)


class DiTTransformer2DModel(StandIn):
    def forward(self, hidden_states, timestep=None, class_labels=None):
        shift = class_labels[:, None, None, None].to(hidden_states.dtype)
        return SimpleNamespace(sample=torch.cat([hidden_states + shift, 0.25 * torch.ones_like(hidden_states)], 1))


class UNet2DConditionModel(StandIn):
    def forward(self, sample, timestep, encoder_hidden_states, encoder_attention_mask=None):
        shown = encoder_hidden_states
        if encoder_attention_mask is not None:
            shown = shown * encoder_attention_mask[..., None]
        return SimpleNamespace(sample=sample + shown.sum((1, 2))[:, None, None, None])


class AutoencoderKL(StandIn):
    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: 3 * x[:, :1] + 1))

    def decode(self, z):
        return SimpleNamespace(sample=((z - 1) / 3).repeat(1, 3, 1, 1))


FAMILIES = (UNet2DModel, DiTTransformer2DModel, UNet2DConditionModel, AutoencoderKL)


@pytest.fixture(autouse=True)
def diffusers(monkeypatch):
    module = SimpleNamespace(**{cls.__name__: cls for cls in FAMILIES})
    monkeypatch.setitem(sys.modules, "diffusers", module)
    return module


def folder(path, config, scheduler=DDIM, name="unet", **listed):
    """A pipeline's folder with one network."""
    for place, content in ((name, config), ("scheduler", scheduler)):
        (path / place).mkdir(parents=True)
        file = "scheduler_config.json" if place == "scheduler" else "config.json"
        (path / place / file).write_text(json.dumps(content))
    listed = {"_class_name": "Pipeline", name: ["diffusers", config["_class_name"]], "scheduler": [], **listed}
    (path / "model_index.json").write_text(json.dumps(listed))
    return path


def unet(**more):
    return {"_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 1, **more}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_in_their_own_notation(tmp_path, prediction):
    """Song et al. 2021, Eq. 12 on the table, written as diffusers writes it."""
    denoiser = bd.interop.diffusers.load(folder(tmp_path, unet(), DDIM | {"prediction_type": prediction}))
    assert denoiser.event_shape == (1, 4, 4) and denoiser.sigma_data == 0.5
    net = UNet2DModel({}).requires_grad_(False)
    products = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    x = x1 = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    entries = [999, 799, 599, 399, 199, -1]
    theirs = []
    for k, to in itertools.pairwise(entries):
        theirs.append(x)
        now, then = products[k], products[to] if to >= 0 else torch.tensor(1.0)
        said = net(x, torch.full((3,), k)).sample
        if prediction == "epsilon":
            noise, data = said, (x - (1 - now).sqrt() * said) / now.sqrt()
        elif prediction == "sample":
            noise, data = (x - now.sqrt() * said) / (1 - now).sqrt(), said
        else:
            a, s = now.sqrt(), (1 - now).sqrt()
            noise, data = s * x + a * said, a * x - s * said
        x = then.sqrt() * data + (1 - then).sqrt() * noise
    seen = []
    plan = bd.solvers.DDIM().plan(denoiser.process.schedule, bd.grids.Trailing().times(denoiser.process.schedule, 5))
    last = plan.run(denoiser, x1, on_step=lambda step: seen.append(step.state))
    for mine, expected in zip([*seen, last], [*theirs, x], strict=True):
        assert (mine - expected).abs().max() < 1e-5 * expected.abs().max().clamp_min(1)


def test_times_between_the_entries(tmp_path):
    x = torch.zeros(2, 1, 4, 4)
    denoiser = bd.interop.diffusers.load(folder(tmp_path / "a", unet()))
    denoiser(x, torch.tensor([0.5005, 0.0002]))
    torch.testing.assert_close(denoiser.net.net.seen, torch.tensor([499.5, 0.0]))
    whole = bd.interop.diffusers.load(folder(tmp_path / "b", unet(time_embedding_type="learned")))
    whole(x, torch.tensor([0.5003, 0.5007]))
    assert whole.net.net.seen.tolist() == [499, 500]
    # clean data are clean data, whatever the network says
    torch.testing.assert_close(denoiser(x + 0.7, 0.0).mean, x + 0.7)


def test_labels(tmp_path):
    path, x = folder(tmp_path, unet(num_class_embeds=5)), torch.zeros(2, 1, 4, 4)
    denoiser = bd.interop.diffusers.load(path)
    assert denoiser.needs_condition
    for words, cond in [
        ("no 'no label'", None),
        ("0..4; got 2..5", {"label": torch.tensor([2, 5])}),
        ("2 integers", {"label": torch.tensor([2])}),
        ("takes label, not 'text'", {"text": 1}),
    ]:
        with pytest.raises(bd.UserError, match=words):
            denoiser(x, 0.5, cond)
    told = bd.interop.diffusers.load(path, none=4)
    assert not told.needs_condition and told.net.classes == 4
    four = denoiser(x, 0.5, {"label": torch.tensor([4, 4])}).mean
    for cond in (None, {"label": torch.tensor([4, 4])}):
        torch.testing.assert_close(told(x, 0.5, cond).mean, four)
    # a label in the middle that stands for none stays where it is
    middle = bd.interop.diffusers.load(path, none=2)
    torch.testing.assert_close(middle(x, 0.5).mean, denoiser(x, 0.5, {"label": torch.tensor([2, 2])}).mean)
    with pytest.raises(bd.UserError, match="one of this network's 5 labels"):
        bd.interop.diffusers.load(path, none=5)
    with pytest.raises(bd.UserError, match="takes no conditions"):
        bd.interop.diffusers.load(folder(tmp_path / "without", unet()))(x, 0.5, {"label": torch.tensor([1, 1])})


DIT = {"_class_name": "DiTTransformer2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 2}


def test_a_transformer_in_codes(tmp_path):
    names = {"0": "a", "1": "b, or c", "2": "d"}
    path = folder(tmp_path, DIT | {"num_embeds_ada_norm": 3}, name="transformer", id2label=names)
    (path / "vae").mkdir()
    vae = {"_class_name": "AutoencoderKL", "scaling_factor": 0.5, "shift_factor": 0.25}
    (path / "vae" / "config.json").write_text(json.dumps(vae))
    denoiser = bd.interop.diffusers.load(path)
    assert denoiser.sigma_data == 1.0
    x = torch.randn(2, 1, 4, 4)
    belief = denoiser(x, 0.5)  # label 3 is none
    alpha, sigma = (v.float() for v in denoiser.process.schedule.alpha_sigma(0.5))
    torch.testing.assert_close(belief.mean, (x - sigma * (x + 3)) / alpha)
    torch.testing.assert_close(belief.fraction, torch.full_like(x, 0.625))  # of the variances' way, in log
    autoencoder = bd.interop.diffusers.load_autoencoder(path)
    picture = torch.randn(2, 3, 4, 4)
    code = autoencoder.encode(picture)
    torch.testing.assert_close(code, 0.5 * (3 * picture[:, :1] + 1 - 0.25))
    torch.testing.assert_close(autoencoder.decode(code), picture[:, :1].repeat(1, 3, 1, 1))
    model = bd.load(path)
    assert model.classes == ("a", "b", "d")
    codes = bd.sample(model.denoiser, index=[0, 1], steps=3, cond={"label": torch.tensor([1, 1])})
    torch.testing.assert_close(model.sample(2, label="b", steps=3), autoencoder.decode(codes))


def test_tokens(tmp_path):
    config = {"_class_name": "UNet2DConditionModel", "sample_size": [4, 6], "in_channels": 1, "cross_attention_dim": 3}
    path = folder(tmp_path, config)
    denoiser, x, tokens = bd.interop.diffusers.load(path), torch.zeros(2, 1, 4, 6), torch.rand(2, 5, 3)
    assert denoiser.event_shape == (1, 4, 6)
    alpha, sigma = (v.float() for v in denoiser.process.schedule.alpha_sigma(0.5))
    expected = (-sigma / alpha * tokens.sum((1, 2)))[:, None, None, None].expand_as(x)
    torch.testing.assert_close(denoiser(x, 0.5, {"tokens": tokens}).mean, expected)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    assert denoiser(x, 0.5, {"tokens": tokens, "tokens_mask": mask}).mean.abs().max() == 0
    for cond in ({}, {"tokens": tokens[..., :2]}, {"tokens": tokens[:1]}):
        with pytest.raises(bd.UserError, match="attends to tokens"):
            denoiser(x, 0.5, cond)
    empty = bd.interop.diffusers.load(path, none=tokens[1])
    torch.testing.assert_close(empty(x, 0.5).mean[0], expected[1])


def test_tokens_from_the_command_line(tmp_path, cli, refused):
    import numpy as np

    config = {"_class_name": "UNet2DConditionModel", "sample_size": 4, "in_channels": 1, "cross_attention_dim": 3}
    path = folder(tmp_path / "model", config)
    np.savez(tmp_path / "cond.npz", tokens=np.random.default_rng(0).random((2, 5, 3), np.float32))
    out = tmp_path / "out.png"
    done = cli("sample", path, "--n", 3, "--steps", 2, "--cond", tmp_path / "cond.npz", "--out", out)
    assert done.status == 0 and out.exists(), done
    assert "attends to tokens" in refused("sample", path, "--steps", 2)
    assert "is no .npz" in refused("sample", path, "--cond", out)


def test_a_tuned_plan_from_the_command_line(tmp_path, cli):
    path = folder(tmp_path / "model", unet(num_class_embeds=2))
    done = cli("tune", path, "--nfe", 5, "--noises", 4, "--updates", 2)
    plan = path / "plans" / "tuned-5.json"
    assert done.status == 0 and bd.Plan.load(plan).evaluations == 5, done
    done = cli("sample", path, "--n", 2, "--steps", 5, "--label", 1, "--out", tmp_path / "out")
    assert done.status == 0 and str(plan) in done.out, done
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    model = bd.load(path)
    seen = []
    model.sample(1, label=1, steps=5, on_step=lambda step: seen.append(step.t))
    assert seen == bd.Plan.load(plan).times[:-1].tolist()


def test_a_network_of_its_own_folder(tmp_path):
    path = folder(tmp_path, unet())
    (path / "model_index.json").unlink()
    x = torch.randn(2, 1, 4, 4)
    alone = bd.interop.diffusers.load(path / "unet")  # finds the scheduler beside it
    given = bd.interop.diffusers.load(path / "unet", scheduler=DDIM | {"prediction_type": "sample"})
    where = bd.interop.diffusers.load(path / "unet", scheduler=path / "scheduler", size=8, sigma_data=2.0)
    assert torch.equal(alone(x, 0.3).mean, where(x, 0.3).mean) and not torch.equal(
        alone(x, 0.3).mean, given(x, 0.3).mean
    )
    assert where.event_shape == (1, 8, 8) and where.sigma_data == 2.0


def test_ours_in_the_place_of_theirs(tmp_path):
    """An exact denoiser predicts, for their scheduler, what follows from E[x_0 | x] on their table."""
    points = torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(2)) / 2
    atoms = bd.exact.Atoms(points)
    theirs = bd.process.Gaussian(bd.interop.diffusers.read(DDIM).schedule)
    for process in (bd.process.Gaussian(bd.schedule.Cosine()), bd.process.Gaussian(bd.schedule.EDM(sigma_max=300.0))):
        net = bd.interop.diffusers.export(atoms.denoiser(process), DDIM)
        assert (net.config.in_channels, net.config.sample_size) == (1, 4)
        for k in (5, 500, 999):
            t = (k + 1) / 1000
            x = theirs.corrupt(points[:3], t, bd.Noise.of(0, 3))
            alpha, sigma = (v.float() for v in theirs.schedule.alpha_sigma(t))
            expected = (x - alpha * atoms.denoiser(theirs)(x, t).mean) / sigma
            torch.testing.assert_close(net(x, k).sample, expected, rtol=1e-3, atol=1e-3)
            assert torch.equal(net(x, torch.tensor(k), return_dict=False)[0], net(x, torch.tensor([k] * 3)).sample)
    with pytest.raises(bd.UserError, match="make pictures"):
        bd.interop.diffusers.export(bd.exact.Atoms(points.flatten(1)).denoiser(theirs), DDIM)


def test_mistakes(tmp_path, monkeypatch):
    load = bd.interop.diffusers.load
    for n, (words, config, scheduler) in enumerate(
        [
            ("cannot be a denoiser", {"_class_name": "FluxTransformer2DModel"}, DDIM),
            ("maps 1 channels to 3", unet(out_channels=3), DDIM),
            ("how large", unet(sample_size=None), DDIM),
            ("cannot be read", unet(), {"_class_name": "LCMScheduler"}),
            ("fourier", unet(time_embedding_type="fourier"), DDIM),
            ("takes no labels", unet(class_embed_type="timestep"), DDIM),
        ]
    ):
        path = folder(tmp_path / str(n), config, scheduler)
        (path / "model_index.json").unlink()
        with pytest.raises(bd.UserError, match=words):
            load(path / "unet")
    path = folder(tmp_path / "good", unet())
    (path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(bd.UserError, match="no scheduler_config"):
        load(path)
    (path / "unet" / "config.json").write_text("{")
    with pytest.raises(bd.UserError, match="is missing or cannot be read"):
        load(path)
    with pytest.raises(bd.UserError, match="There is no folder"):
        load(tmp_path / "nowhere")
    two = folder(tmp_path / "two", unet(), transformer=["diffusers", "DiTTransformer2DModel"])
    with pytest.raises(bd.UserError, match="has 2 networks"):
        load(two)
    with pytest.raises(bd.UserError, match="not an AutoencoderKL"):
        bd.interop.diffusers.load_autoencoder(path.parent / "two" / "unet")


def test_weights_that_do_not_fit(tmp_path, monkeypatch):
    path = folder(tmp_path, unet())
    for words, report in [
        ("lacks weight conv", {"missing_keys": ["conv"], "unexpected_keys": []}),
        ("unknown weight more", {"missing_keys": [], "unexpected_keys": ["more"]}),
    ]:
        monkeypatch.setattr(UNet2DModel, "report", report)
        with pytest.raises(bd.UserError, match=words):
            bd.interop.diffusers.load(path)

    def broken(*args, **options):
        raise RuntimeError("size mismatch for conv:\nmany\nlines")

    monkeypatch.setattr(UNet2DModel, "from_pretrained", broken)
    with pytest.raises(bd.UserError, match="size mismatch for conv") as raised:
        bd.interop.diffusers.load(path)
    assert "\n" not in str(raised.value)


def test_without_diffusers(tmp_path, monkeypatch, refused):
    path = folder(tmp_path, unet())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'backdrift[diffusers]'" in refused("sample", path)
