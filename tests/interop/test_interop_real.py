"""Against diffusers itself, on small random models saved by it: its tables to the bit, its loops step by step."""

import json

import pytest
import torch

import backdrift as bd

pytestmark = pytest.mark.interop
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


@pytest.fixture(scope="module")
def df():
    return pytest.importorskip("diffusers")


def unet(**options):
    import diffusers as df

    torch.manual_seed(0)
    return df.UNet2DModel(**SMALL | options).eval()


def saved(tmp_path, net, scheduler, name="unet"):
    """A pipeline's folder, as diffusers writes the parts."""
    net.save_pretrained(tmp_path / name)
    scheduler.save_pretrained(tmp_path / "scheduler")
    listed = {"_class_name": "P", name: ["diffusers", type(net).__name__]}
    (tmp_path / "model_index.json").write_text(json.dumps(listed))
    return tmp_path


TABLES = [
    (cls, {"beta_schedule": schedule, "rescale_betas_zero_snr": zero})
    for cls in ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")
    for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2")
    for zero in (False, True)
] + [
    ("PNDMScheduler", {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
    ("UniPCMultistepScheduler", {"rescale_betas_zero_snr": True}),
    ("HeunDiscreteScheduler", {}),
    ("DDPMScheduler", {"beta_schedule": "sigmoid", "num_train_timesteps": 100}),
    ("DEISMultistepScheduler", {"trained_betas": [0.1, 0.2, 0.3, 0.7]}),
]


@pytest.mark.parametrize("cls, options", TABLES)
def test_tables_are_theirs_to_the_bit(df, cls, options):
    scheduler = getattr(df, cls)(**{"prediction_type": "v_prediction"} | options)
    found = bd.interop.diffusers.read(dict(scheduler.config) | {"_class_name": cls})
    table = scheduler.alphas_cumprod.double().tolist()
    if options.get("rescale_betas_zero_snr"):
        assert table.pop() in (0.0, 2.0**-24)  # which some put in its place
        assert found.schedule.alphas_bar[-1] == 0
    assert found.schedule.alphas_bar[: len(table)] == tuple(table)


def loop(scheduler, net, x, steps, **call):
    """Their loop: the states before each step, and the last."""
    scheduler.set_timesteps(steps)
    states = []
    with torch.no_grad():
        for t in scheduler.timesteps:
            states.append(x)
            shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            p = net(shown, t.expand(len(x)), **call).sample
            x = scheduler.step(p, t, x).prev_sample
    return [*states, x]


def ours(denoiser, x1, solver, times, **call):
    """Our states before each step, and the last."""
    seen = []
    plan = solver.plan(denoiser.process.schedule, times)
    last = plan.run(denoiser, x1, call.get("cond"), on_step=lambda step: seen.append(step.state))
    return [*seen, last]


def agree(mine, theirs):
    assert len(mine) == len(theirs)
    for n, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        gap = float((a - b).abs().max() / b.abs().max().clamp_min(1))
        assert gap < 1e-5, (n, gap)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_step_by_step(df, tmp_path, prediction, steps):
    net = unet()
    scheduler = df.DDIMScheduler(clip_sample=False, prediction_type=prediction, timestep_spacing="trailing")
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler))
    x1 = torch.randn(3, 1, 8, 8)
    times = bd.grids.Trailing().times(denoiser.process.schedule, steps)
    agree(ours(denoiser, x1, bd.solvers.DDIM(), times), loop(scheduler, net, x1, steps))


def test_zero_terminal_snr(df, tmp_path):
    net = unet()
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = df.DDIMScheduler(clip_sample=False, **options)
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler))
    assert float(denoiser.process.schedule.alpha_sigma(1.0)[0]) == 0
    x1 = torch.randn(3, 1, 8, 8)
    times = bd.grids.Trailing().times(denoiser.process.schedule, 10)
    agree(ours(denoiser, x1, bd.solvers.DDIM(), times), loop(scheduler, net, x1, 10))


def test_dpm_solver_step_by_step(df, tmp_path):
    net = unet()
    scheduler = df.DPMSolverMultistepScheduler(timestep_spacing="trailing")
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler))
    x1 = torch.randn(3, 1, 8, 8)
    times = bd.grids.Trailing().times(denoiser.process.schedule, 20)
    agree(ours(denoiser, x1, bd.solvers.DPMpp(2), times), loop(scheduler, net, x1, 20))


@pytest.mark.parametrize("continuous", [False, True])
def test_euler_in_their_own_scale(df, tmp_path, continuous):
    net = unet()
    options = {"prediction_type": "v_prediction", "timestep_type": "continuous"} if continuous else {}
    scheduler = df.EulerDiscreteScheduler(timestep_spacing="trailing", **options)
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler))
    x1 = torch.randn(3, 1, 8, 8)
    times = bd.grids.Trailing().times(denoiser.process.schedule, 10)
    scheduler.set_timesteps(10)
    theirs = loop(scheduler, net, x1 / denoiser.process.schedule.alpha_sigma(1.0)[0].float(), 10)
    alphas = denoiser.process.schedule.alpha_sigma(times)[0].float()
    agree(ours(denoiser, x1, bd.solvers.DDIM(), times), [a * x for a, x in zip(alphas, theirs, strict=True)])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_with_a_shift(df, tmp_path, shift):
    net = unet()
    scheduler = df.FlowMatchEulerDiscreteScheduler(shift=shift)
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler))
    scheduler.set_timesteps(10)
    x1 = torch.randn(3, 1, 8, 8)
    levels = scheduler.sigmas.double().clamp(1e-9)
    times = denoiser.process.schedule.time(2 * ((1 - levels) / levels).log())
    times[0], times[-1] = 1, 0
    assert times.diff().max() < 0 and (shift == 1 or abs(float(times[5]) - 0.5) < 0.06)
    scheduler = df.FlowMatchEulerDiscreteScheduler(shift=shift)
    agree(ours(denoiser, x1, bd.solvers.Euler(), times), loop(scheduler, net, x1, 10))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("levels", ["karras", "exponential"])
def test_edm(df, tmp_path, prediction, levels):
    net = unet()
    options = {"sigma_schedule": levels, "prediction_type": prediction, "sigma_data": 0.7}
    scheduler = df.EDMEulerScheduler(**options)
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler))
    assert denoiser.sigma_data == 0.7
    x1 = 80 * torch.randn(3, 1, 8, 8)
    # theirs ends with a step to sigma = 0, ours at 0.002
    times = bd.grids.Uniform().times(denoiser.process.schedule, 9)
    agree(ours(denoiser, x1, bd.solvers.Euler(), times), loop(scheduler, net, x1, 10)[:-1])


def test_learned_embeddings_are_told_whole_entries(df, tmp_path):
    net = unet(time_embedding_type="learned", num_train_timesteps=1000)
    scheduler = df.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler))
    x1 = torch.randn(3, 1, 8, 8)
    times = bd.grids.Trailing().times(denoiser.process.schedule, 10)
    agree(ours(denoiser, x1, bd.solvers.DDIM(), times), loop(scheduler, net, x1, 10))
    assert bool(denoiser(x1, 0.50049).mean.isfinite().all())


def dit(**options):
    import diffusers as df

    torch.manual_seed(0)
    small = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "norm_num_groups": 4}
    options = small | {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 10} | options
    net = df.DiTTransformer2DModel(**options).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def test_a_transformer_with_labels_and_a_learned_variance(df, tmp_path):
    net, label = dit(), torch.tensor([3, 9, 0])
    scheduler = df.DDPMScheduler(clip_sample=False, variance_type="learned_range", timestep_spacing="trailing")
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler, "transformer"))
    assert denoiser.event_shape == (4, 8, 8) and denoiser.sigma_data == 0.5
    # one step, as mean and standard deviation: the noise is drawn by both alike
    scheduler.set_timesteps(1000)
    x, k = torch.randn(3, 4, 8, 8), 700
    noise = bd.Noise.of(0, 3)
    posterior = denoiser(x, (k + 1) / 1000, {"label": label})
    mine = denoiser.process.bridge(x, posterior, (k + 1) / 1000, k / 1000, noise)
    with torch.no_grad():
        p = net(x, torch.tensor([k] * 3), class_labels=label).sample
    step = scheduler.step(p, k, x, generator=torch.Generator().manual_seed(5))
    fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    variance = scheduler._get_variance(k, predicted_variance=p[:, 4:])
    theirs = step.prev_sample + (0.5 * variance).exp() * (noise.normal(x) - fresh)
    agree([mine], [theirs])
    # no label is the last row of its table
    none = torch.full((3,), 10)
    with torch.no_grad():
        p = net(x, torch.tensor([k] * 3), class_labels=none).sample[:, :4]
    alpha, sigma = (v.float() for v in denoiser.process.schedule.alpha_sigma((k + 1) / 1000))
    agree([denoiser(x, (k + 1) / 1000).mean], [(x - sigma * p) / alpha])


def test_guidance_on_a_transformer_is_their_pipelines(df, tmp_path):
    net = dit(num_embeds_ada_norm=1000)  # their pipeline knows 1000 as no label
    scheduler = df.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler, "transformer"))
    label, x1 = torch.tensor([3, 999]), torch.randn(2, 4, 8, 8)
    guided = bd.guide.ClassifierFree(denoiser, 4.0)
    times = bd.grids.Trailing().times(denoiser.process.schedule, 5)
    mine = ours(guided, x1, bd.solvers.DDIM(), times, cond={"label": label})

    def net_guided(x, t):
        both = torch.cat([label, torch.full((2,), 1000)])
        given, without = net(torch.cat([x, x]), t.repeat(2), class_labels=both).sample[:, :4].chunk(2)
        return df.models.unets.unet_2d.UNet2DOutput(without + 4.0 * (given - without))

    agree(mine, loop(scheduler, net_guided, x1, 5))


def test_class_conditional_unet(df, tmp_path):
    net = unet(num_class_embeds=5)
    scheduler = df.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    folder = saved(tmp_path, net, scheduler)
    denoiser = bd.interop.diffusers.load(folder)
    label, x1 = torch.tensor([4, 0]), torch.randn(2, 1, 8, 8)
    times = bd.grids.Trailing().times(denoiser.process.schedule, 5)
    mine = ours(denoiser, x1, bd.solvers.DDIM(), times, cond={"label": label})
    agree(mine, loop(scheduler, net, x1, 5, class_labels=label))
    with pytest.raises(bd.UserError, match="no 'no label'"):
        denoiser(x1, 0.5)
    without = bd.interop.diffusers.load(folder, none=4)
    torch.testing.assert_close(without(x1, 0.5).mean, denoiser(x1, 0.5, {"label": torch.tensor([4, 4])}).mean)


def conditional():
    import diffusers as df

    torch.manual_seed(0)
    return df.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=8,
    ).eval()


def test_text_conditional_unet(df, tmp_path):
    net = conditional()
    scheduler = df.PNDMScheduler(skip_prk_steps=True, timestep_spacing="trailing", set_alpha_to_one=True)
    folder = saved(tmp_path, net, scheduler)
    tokens, x1 = torch.randn(2, 6, 24), torch.randn(2, 4, 8, 8)
    denoiser = bd.interop.diffusers.load(folder)
    times = bd.grids.Trailing().times(denoiser.process.schedule, 5)
    mine = ours(denoiser, x1, bd.solvers.DDIM(), times, cond={"tokens": tokens})
    ddim = df.DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    agree(mine, loop(ddim, net, x1, 5, encoder_hidden_states=tokens))
    with pytest.raises(bd.UserError, match="attends to tokens"):
        denoiser(x1, 0.5)
    empty = torch.randn(6, 24)
    guided = bd.guide.ClassifierFree(bd.interop.diffusers.load(folder, none=empty), 2.0, ("tokens",))
    given, without = (denoiser(x1, 0.5, {"tokens": v}).mean for v in (tokens, empty.expand(2, -1, -1)))
    torch.testing.assert_close(guided(x1, 0.5, {"tokens": tokens}).mean, without + 2 * (given - without), **CLOSE)
    # queries may be kept from some of the tokens
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 3:] = False
    masked = denoiser(x1, 0.5, {"tokens": tokens, "tokens_mask": mask}).mean
    torch.testing.assert_close(masked, denoiser(x1, 0.5, {"tokens": tokens[:, :3]}).mean, **CLOSE)


def autoencoder(**options):
    import diffusers as df

    torch.manual_seed(1)
    return df.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        **options,
    ).eval()


def test_codes_are_scaled_and_shifted(df, tmp_path):
    vae = autoencoder(scaling_factor=0.3, shift_factor=0.1)
    vae.save_pretrained(tmp_path / "vae")
    mine = bd.interop.diffusers.load_autoencoder(tmp_path)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        code = (vae.encode(x).latent_dist.mode() - 0.1) * 0.3
        torch.testing.assert_close(mine.encode(x), code)
        torch.testing.assert_close(mine.decode(code), vae.decode(code / 0.3 + 0.1).sample)


def test_a_latent_pipeline_makes_pictures_from_the_command_line(df, tmp_path, cli):
    folder = saved(tmp_path / "model", dit(), df.DDIMScheduler(), "transformer")
    autoencoder().save_pretrained(folder / "vae")
    model = bd.load(folder)
    assert model.classes == tuple("0123456789") and model.denoiser.sigma_data == 1.0
    assert model.sample(2, label=3, steps=2).shape == (2, 3, 16, 16)
    done = cli("sample", folder, "--n", 2, "--label", 3, "--guidance", 2, "--steps", 2, "--out", tmp_path / "a.png")
    assert done.status == 0 and (tmp_path / "a.png").exists(), done


def test_a_tuned_plan_runs_on_a_foreign_model_from_the_command_line(df, tmp_path, cli):
    folder = saved(tmp_path / "model", unet(), df.DDPMScheduler())
    done = cli("tune", folder, "--nfe", 5, "--noises", 8, "--updates", 3)
    assert done.status == 0, done
    plan = bd.Plan.load(folder / "plans" / "tuned-5.json")
    assert plan.evaluations == 5
    done = cli("sample", folder, "--n", 2, "--steps", 5, "--out", tmp_path / "out")
    assert done.status == 0 and "tuned-5.json" in done.out, done
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_our_models_drive_their_pipelines(df):
    torch.manual_seed(0)
    points = torch.randn(20, 1, 8, 8).clamp(-1, 1)
    exact = bd.exact.Atoms(points).denoiser(bd.process.Gaussian(bd.schedule.Cosine()))
    for cls, scheduler, options in (
        (df.DDPMPipeline, df.DDPMScheduler(), {"num_inference_steps": 20}),
        (df.DDIMPipeline, df.DDIMScheduler(prediction_type="v_prediction"), {"num_inference_steps": 20}),
    ):
        unet = bd.interop.diffusers.export(exact, scheduler)
        pipe = cls(unet=unet, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        made = pipe(batch_size=4, output_type="pt", **options).images
        gaps = (2 * made[:, None] - 1 - points).flatten(2).norm(dim=2).min(1).values
        assert gaps.max() < 0.5, (cls, gaps)


@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"],
)
def test_export_and_load_are_inverse(df, tmp_path, scheduler):
    """Their network as ours, and out again for the same scheduler, is their network."""
    net, scheduler = unet(), getattr(df, scheduler)()
    denoiser = bd.interop.diffusers.load(saved(tmp_path, net, scheduler))
    again = bd.interop.diffusers.export(denoiser, scheduler)
    x = torch.randn(3, 1, 8, 8)
    for t in scheduler.timesteps[[0, 300, 900]]:
        with torch.no_grad():
            torch.testing.assert_close(again(x, t).sample, net(x, t).sample, rtol=1e-4, atol=1e-4)


def test_damage_is_one_sentence(df, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, unet(), df.DDPMScheduler())
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for words, change in (
        ("lacks weight conv_in.weight", lambda w: w.pop("conv_in.weight")),
        ("unknown weight extra", lambda w: w.update(extra=torch.zeros(1))),
        ("can be loaded", lambda w: w.update({"conv_in.weight": torch.zeros(3, 3)})),
    ):
        changed = dict(weights)
        change(changed)
        save_file(changed, file)
        with pytest.raises(bd.UserError, match=words) as raised:
            bd.interop.diffusers.load(folder)
        assert "\n" not in str(raised.value)
    file.unlink()
    with pytest.raises(bd.UserError, match="can be loaded"):
        bd.interop.diffusers.load(folder)
