"""Every kind of network learns: in seconds it denoises better than anything that knows mean and covariance only.

The data are bars, one of eight rows or columns of an 8 x 8 picture: 16 pictures, so the exact denoiser is a softmax,
and the best linear denoiser is that of the Gaussian with their mean and covariance. Losses are those of the velocity.
"""

import math

import pytest
import torch

from backdrift.nets import MLP, DiT, MPUNet, UNet

BARS = torch.cat([torch.eye(8).repeat_interleave(8, 1), torch.eye(8).repeat(1, 8)])
BARS = (BARS - BARS.mean()) / BARS.std(correction=0)
PYRAMID = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_width": 16}


def draw(batch, generator):
    """Data, noise angles in [0.3, pi/2], noisy data and velocities."""
    x = BARS[torch.randint(16, (batch,), generator=generator)]
    w = 0.3 + (math.pi / 2 - 0.3) * torch.rand(batch, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    cos, sin = w.cos()[:, None], w.sin()[:, None]
    return w, cos * x + sin * noise, cos * noise - sin * x


def velocity(mean, w, noisy):
    return (w.cos()[:, None] * noisy - mean) / w.sin()[:, None]


def linear(w, noisy):
    """The velocity that a Gaussian with the bars' mean and covariance implies."""
    mean = BARS.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(BARS.T, correction=0))
    cos, sin = w.cos()[:, None], w.sin()[:, None]
    gain = cos * values / (cos**2 * values + sin**2)
    return velocity(mean + (gain * ((noisy - cos * mean) @ vectors)) @ vectors.T, w, noisy)


def exact(w, noisy):
    cos, sin = w.cos()[:, None, None], w.sin()[:, None]
    distance = (noisy[:, None] - cos * BARS).square().sum(2)
    return velocity((-distance / (2 * sin**2)).softmax(1) @ BARS, w, noisy)


def picture(net):
    return lambda noisy, w: net(noisy.view(-1, 1, 8, 8), w).flatten(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, call, lr",
    [
        (lambda: UNet(1, **PYRAMID), picture, 3e-3),
        (lambda: MPUNet(1, **PYRAMID), picture, 3e-2),
        (lambda: DiT(1, patch=2, width=64, depth=2, head_width=32), picture, 3e-3),
        (lambda: DiT(1, patch=2, width=64, depth=2, head_width=32, rotary=False), picture, 3e-3),
        (lambda: MLP(64, width=128), lambda net: net, 3e-3),
    ],
    ids=["unet", "mp-unet", "dit", "dit without rotation", "mlp"],
)
def test_a_network_soon_beats_every_linear_denoiser(make, call, lr):
    torch.manual_seed(0)
    net = make()
    predict, generator = call(net), torch.Generator().manual_seed(0)
    steps = 250
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: min(1, (i + 1) / 10) * (1 - i / steps))
    for _ in range(steps):
        w, noisy, v = draw(64, generator)
        optimiser.zero_grad()
        (predict(noisy, w) - v).square().mean().backward()
        optimiser.step()
        rate.step()
    net.eval()
    w, noisy, v = draw(1024, generator)
    with torch.no_grad():
        predictions = predict(noisy, w), linear(w, noisy), exact(w, noisy)
        reached, gaussian, least = ((p - v).square().mean() for p in predictions)
        # told another noise level, it changes its mind as the exact denoiser does
        other = (w + 0.2).clamp_max(1.5)
        moved, due = predict(noisy, other) - predictions[0], exact(other, noisy) - predictions[2]
    print(f"reached {reached:.3f} linear {gaussian:.3f} exact {least:.3f}")
    assert least < reached < gaussian
    likeness = torch.nn.functional.cosine_similarity(moved.flatten(), due.flatten(), dim=0)
    print(f"likeness {likeness:.2f}")
    assert likeness > 0.5  # 0 for a network that is deaf to it
