"""On an accelerator: the same seeds give the same pictures, and training runs, stops and continues."""

import pytest
import torch

from backdrift import data
from backdrift.denoiser import Network
from backdrift.nets import UNet
from backdrift.noise import Noise
from backdrift.process import Gaussian
from backdrift.sample import sample, solvers
from backdrift.schedule import Cosine
from backdrift.target import EDM_F

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")]


@pytest.mark.parametrize("event", [(5,), (3, 32, 32)], ids=["hashed", "streams"])
def test_noise_is_the_same_on_both(event):
    noise = Noise.of(3, 4)
    here, there = (noise.normal(torch.empty(4, *event, device=device)) for device in ("cpu", "cuda"))
    assert torch.allclose(here, there.cpu(), atol=1e-5)


@pytest.mark.parametrize("solver", [solvers.DPMpp(2), solvers.DDPM()], ids=repr)
def test_samples_are_the_same_on_both(solver, monkeypatch):
    # TF32 keeps 10 bits of a product; without it both sides compute in float32
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    torch.manual_seed(0)
    net = UNet(3, width=32, multipliers=(1, 2), blocks=1, attention=(1,))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    made = []
    for device in ("cpu", "cuda"):
        network = Network(net.to(device), Gaussian(Cosine()), EDM_F(0.5), (3, 16, 16)).eval()
        made.append(sample(network, index=[3, 8, 1], solver=solver, steps=10).cpu())
    assert torch.allclose(*made, atol=1e-4)


def test_training_continues_where_it_was(tmp_path):
    from dataclasses import replace

    from backdrift.train.loop import train
    from backdrift.train.options import for_pictures

    digits = data.digits()
    options = replace(for_pictures(digits), steps=6, batch=16, checkpoint_every=3)

    class Enough(Exception):
        pass

    def stop(progress):
        if progress.step == 4:
            raise Enough

    whole = train(digits, options, run=tmp_path / "whole", device="cuda").network
    with pytest.raises(Enough):
        train(digits, options, run=tmp_path / "cut", device="cuda", on_progress=stop)
    cut = train(digits, options, run=tmp_path / "cut", device="cuda").network
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)
