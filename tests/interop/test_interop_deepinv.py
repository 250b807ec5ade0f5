"""deepinv's operators as ours and ours as theirs; needs the extra."""

import math

import pytest
import torch

import backdrift as bd
from backdrift import UserError
from backdrift.exact import Mixture
from backdrift.inverse import Blur, Function, Inpaint, PiGDM, PoissonNoise, Radon, gaussian_kernel
from backdrift.noise import Noise
from backdrift.process import Gaussian

EVENT = (1, 16, 16)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prior():
    means = random(2, *EVENT) * 0.5
    return Mixture(torch.ones(2), means, 0.05)


def test_without_deepinv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "deepinv", None)
    with pytest.raises(UserError, match="backdrift\\[deepinv\\]"):
        bd.interop.deepinv.measurement(object(), EVENT)


def test_our_denoiser_in_the_unit_range():
    process = Gaussian(bd.schedule.VP())
    denoiser, sigma = prior().denoiser(process), 0.2
    x = random(3, *EVENT) * 0.3 + 0.5
    t = float(process.schedule.time(torch.tensor(-2 * math.log(2 * sigma)).double()))
    alpha = float(process.schedule.alpha_sigma(t)[0])
    expected = (denoiser(alpha * (2 * x - 1), t).mean + 1) / 2
    found = bd.interop.deepinv.denoiser(denoiser)(x, torch.tensor([sigma]))
    assert found.dtype == x.dtype
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    wide = Mixture(torch.ones(1), torch.zeros(1, *EVENT).double(), 0.05).denoiser(process)
    assert bd.interop.deepinv.denoiser(wide)(x, sigma).dtype == torch.float32


@pytest.mark.interop
def test_their_operators_are_ours():
    dinv = pytest.importorskip("deepinv")
    noise = dinv.physics.GaussianNoise(0.1)
    operators = [
        dinv.physics.Inpainting(img_size=EVENT, mask=0.5, noise_model=noise),
        dinv.physics.BlurFFT(img_size=EVENT, filter=dinv.physics.blur.gaussian_blur(sigma=1.0), noise_model=noise),
        dinv.physics.Downsampling(img_size=EVENT, factor=2, noise_model=noise),
        dinv.physics.Tomography(angles=6, img_width=16, noise_model=noise),
    ]
    for physics in operators:
        ours = bd.interop.deepinv.measurement(physics, EVENT)
        x, v = random(2, *EVENT), random(2, *ours.shape, seed=1)
        torch.testing.assert_close(ours.forward(x), physics.A(x))
        left, right = float((ours.forward(x) * v).sum()), float((x * ours.adjoint(v)).sum())
        assert left == pytest.approx(right, rel=2e-3 if "Tomography" in str(type(physics)) else 1e-4, abs=1e-2)
        draws = PiGDM()(prior().denoiser(Gaussian(bd.schedule.VP())), ours, ours.forward(x[:1])[0], 2, steps=5,
                        noise=Noise.of(0, 2))  # fmt: skip
        assert torch.isfinite(draws).all()
    poisson = dinv.physics.Denoising(dinv.physics.PoissonNoise(gain=0.1))
    assert bd.interop.deepinv.measurement(poisson, EVENT).noise.peak == pytest.approx(10)
    with pytest.raises(UserError, match="not known here"):
        bd.interop.deepinv.measurement(dinv.physics.Denoising(dinv.physics.UniformNoise(0.1)), EVENT)


@pytest.mark.interop
def test_our_operators_are_theirs_and_our_samplers_their_models():
    dinv = pytest.importorskip("deepinv")
    denoiser = prior().denoiser(Gaussian(bd.schedule.VP()))
    for ours in (
        Inpaint((random(16, 16) > 0).float(), 0.1, EVENT),
        Blur(gaussian_kernel(1.0), EVENT, 0.1),
        Radon(torch.arange(6) * math.pi / 6, EVENT, 0.1),
    ):
        physics = bd.interop.deepinv.physics(ours)
        assert isinstance(physics, dinv.physics.LinearPhysics)
        x = random(2, *EVENT)
        torch.testing.assert_close(physics.A(x), ours.forward(x))
        assert float(physics.adjointness_test(x)) == pytest.approx(0, abs=1e-3)
        y = physics(x)
        assert 0.05 < float((y - physics.A(x)).std()) < 0.15
        model = bd.interop.deepinv.reconstructor(PiGDM(), denoiser, steps=4, seed=3)
        assert isinstance(model, dinv.models.Reconstructor)
        back = bd.interop.deepinv.measurement(physics, EVENT)
        direct = PiGDM()(denoiser, back, y, 2, steps=4, noise=Noise.of(3, 2))
        torch.testing.assert_close(model(y, physics), direct)
    bent = bd.interop.deepinv.physics(Function(torch.sin, EVENT, 0.1))
    assert not isinstance(bent, dinv.physics.LinearPhysics)
    with pytest.raises(UserError, match="Gaussian noise"):
        bd.interop.deepinv.physics(Function(torch.sin, EVENT, PoissonNoise(5.0)))
