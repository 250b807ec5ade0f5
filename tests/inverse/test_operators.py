"""Operators against dense algebra and against what they are by definition."""

import io
import math

import numpy as np
import pytest
import torch

from backdrift import UserError
from backdrift.inverse import (
    JPEG,
    Blur,
    Clip,
    Downsample,
    FourierSamples,
    GaussianNoise,
    Identity,
    Inpaint,
    PhaseRetrieval,
    Radon,
    ResponseBlur,
    RoundedNoise,
    compose,
    compressed,
    filtered,
    gaussian_kernel,
    jpeg_steps,
)
from backdrift.noise import Noise

EVENT = (2, 6, 6)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def operators():
    mask = random(6, 6) > 0.3
    angles = torch.linspace(0, math.pi, 5)[:-1]
    return {
        "identity": Identity(EVENT, 0.3),
        "jpeg": JPEG((1, 8, 16), noise=GaussianNoise(0.3)),
        "compressed": compressed(EVENT, 20, 0.3),
        "inpaint": Inpaint(mask.double(), 0.3, EVENT),
        "down": Downsample(3, EVENT, 0.3),
        "blur": Blur(random(3, 5).abs(), EVENT, 0.3),
        "blur, noise per pixel": Blur(random(3, 3).abs(), EVENT, 0.2 + random(*EVENT, seed=9).abs()),
        "fourier": FourierSamples((random(6, 6, seed=2) > 0.5), EVENT, 0.3),
        "fourier, odd": FourierSamples(torch.ones(5, 5), (1, 5, 5), 0.3),
        "parallel": Radon(angles, EVENT, 0.3),
        "fan": Radon(angles, EVENT, 0.3, detectors=7, source=20.0),
        "blur and down": compose(Downsample(2, EVENT, 0.3), Blur(gaussian_kernel(0.8, 1), EVENT, 1.0)),
    }


@pytest.fixture(params=list(operators()))
def operator(request):
    return operators()[request.param]


def test_adjoint_solve_and_pseudo_inverse_against_the_matrix(operator):
    A = operator.matrix()
    x, v = random(3, *operator.event_shape), random(3, *operator.shape, seed=1)
    torch.testing.assert_close(operator.forward(x).flatten(1), x.flatten(1) @ A.mT)
    torch.testing.assert_close(operator.adjoint(v).flatten(1), v.flatten(1) @ A)
    torch.testing.assert_close(operator.vjp(x, v).flatten(1), v.flatten(1) @ A)
    scale = torch.tensor([0.0, 0.3, 20.0], dtype=torch.float64)
    variance = operator.variance(v)[0].flatten().diag()
    for row, c, z in zip(v, scale, operator.solve(v, scale), strict=True):
        expected = torch.linalg.solve(c * A @ A.mT + variance, row.flatten())
        torch.testing.assert_close(z.flatten(), expected, rtol=1e-5, atol=2e-6)
    seen = operator.seen(x)
    torch.testing.assert_close(seen.flatten(1), x.flatten(1) @ (torch.linalg.pinv(A) @ A).mT, rtol=1e-5, atol=1e-5)


def test_singular_values_and_bases(operator):
    svd, A = operator.svd(), operator.matrix()
    x, y = random(3, *operator.event_shape), random(3, *operator.shape, seed=1)
    values = torch.linalg.svdvals(A)
    values = values[values > 1e-6 * values.max()]
    torch.testing.assert_close(svd.values.sort(descending=True)[0], values)
    c = random(3, len(values), seed=2)
    # V is orthonormal, and A = U diag(values) V^T with nothing outside
    torch.testing.assert_close(svd.right(svd.back(c)), c)
    torch.testing.assert_close((svd.back(c) * x).flatten(1).sum(1), (c * svd.right(x)).sum(1))
    torch.testing.assert_close(svd.left(operator.forward(x)), svd.values * svd.right(x))
    seen = svd.back(svd.left(y) / svd.values).flatten(1)
    torch.testing.assert_close(seen, y.flatten(1) @ torch.linalg.pinv(A, rtol=1e-6).mT, rtol=1e-6, atol=1e-7)


def test_float32_is_near(operator):
    x = random(2, *operator.event_shape)
    near = operator.adjoint(operator.forward(x.float()))
    torch.testing.assert_close(near.double(), operator.adjoint(operator.forward(x)), rtol=1e-4, atol=1e-4)


def test_blur_is_a_convolution_on_the_torus():
    kernel, x = random(3, 5), random(1, 1, 6, 6)
    y = Blur(kernel, (1, 6, 6), 0.1).forward(x)
    expected = sum(
        kernel[i, j] * x.roll((i - 1, j - 2), (2, 3)) for i in range(3) for j in range(5)
    )  # y[n] = sum_k kernel[k] x[n - k], k from the centre
    torch.testing.assert_close(y, expected)


def test_fourier_samples_have_orthonormal_rows_and_hold_what_was_asked():
    mask = torch.zeros(6, 6)
    mask[1, 2] = mask[0, 0] = mask[3, 3] = 1
    operator = FourierSamples(mask, (1, 6, 6), 0.1)
    A = operator.matrix()
    assert A.shape == (4, 36)
    torch.testing.assert_close(A @ A.mT, torch.eye(4).double())
    x = random(1, 1, 6, 6)
    spectrum = torch.fft.fft2(x, norm="ortho")[0, 0]
    expected = torch.stack(
        [spectrum[1, 2].real * 2**0.5, spectrum[1, 2].imag * 2**0.5, spectrum[0, 0].real, spectrum[3, 3].real]
    )
    torch.testing.assert_close(operator.forward(x)[0, 0], expected)
    # the mirror image adds nothing
    mask[5, 4] = 1
    assert FourierSamples(mask, (1, 6, 6), 0.1).shape == (1, 4)


def disc(side, radius, across=0.0, down=0.0):
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    inside = (place[None] - across) ** 2 + (place[:, None] - down) ** 2
    return (radius - inside.sqrt() + 0.5).clamp(0, 1)[None, None]  # with an edge of one pixel


@pytest.mark.parametrize("source", [None, 90.0])
def test_line_integrals_of_a_disc_are_its_chords(source):
    side, radius, across, down = 64, 15.0, 8.0, -5.0
    angles = torch.tensor([0.0, 0.4, 1.3, 2.5], dtype=torch.float64)
    y = Radon(angles, (1, side, side), 0.1, source=source).forward(disc(side, radius, across, down))[0, 0]
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    for angle, row in zip(angles.tolist(), y, strict=True):
        normal = torch.tensor([math.cos(angle), -math.sin(angle)]).double()
        if source is None:
            distance = place - (across * normal[0] + down * normal[1])
        else:
            start = -source * torch.tensor([math.sin(angle), math.cos(angle)]).double()
            ray = place[:, None] * normal - start
            ray = ray / ray.norm(dim=1, keepdim=True)
            gap = torch.tensor([across, down]).double() - start
            distance = gap[0] * ray[:, 1] - gap[1] * ray[:, 0]
        chord = 2 * (radius**2 - distance**2).clamp_min(0).sqrt()
        far = (distance.abs() - radius).abs() > 1.5  # at the rim the edge of one pixel shows
        assert (row - chord)[far].abs().max() < 0.5
        if source is None:
            assert float(row.sum()) == pytest.approx(math.pi * radius**2, rel=0.02)


def test_filtered_back_projection_returns_the_disc():
    side, count = 48, 90
    x = disc(side, 12.0, 4.0, 3.0)
    operator = Radon(torch.arange(count) * math.pi / count, (1, side, side), 0.1)
    back = operator.adjoint(filtered(operator.forward(x))) * math.pi / (2 * count)
    inside = disc(side, 9.0, 4.0, 3.0) == 1
    assert float(back[inside].mean()) == pytest.approx(1, abs=0.05)
    assert float(back[disc(side, 15.0, 4.0, 3.0) == 0].abs().mean()) < 0.05


def test_phase_retrieval_cannot_tell_a_picture_from_its_negative_or_mirror_image():
    operator, x = PhaseRetrieval(EVENT, 0.1), random(1, *EVENT)
    y = operator.forward(x)
    torch.testing.assert_close(operator.forward(-x), y)
    torch.testing.assert_close(operator.forward(x.flip(2, 3)), y)
    assert (operator.forward(x.flip(3)) - y).abs().max() > 0.1
    # Parseval: the energy of the picture
    torch.testing.assert_close(y.square().sum(), x.square().sum())


def test_jpeg_is_what_an_encoder_writes():
    from PIL import Image

    wave = torch.linspace(-2, 3, 24)
    picture = (torch.sin(wave[:, None] * 1.7) * torch.cos(wave[None]) + 0.3 * random(24, 24).float()).clamp(-1, 1)
    levels = ((picture + 1) * 127.5).round()
    for quality in (10, 50, 90):
        buffer = io.BytesIO()
        Image.fromarray(levels.to(torch.uint8).numpy()).save(buffer, "jpeg", quality=quality)
        image = Image.open(buffer)
        table = torch.tensor(image.quantization[0]).double().view(8, 8)
        torch.testing.assert_close(jpeg_steps(quality) * 127.5, table)
        operator = JPEG((1, 24, 24), quality)
        x = (levels / 127.5 - 1)[None, None].double()
        decoded = operator.pinv(operator.draw(x, Noise.of(0, 1)))[0, 0].clamp(-1, 1)
        theirs = torch.from_numpy(np.array(image)).double() / 127.5 - 1
        # JPEG's zero lies half a level lower, so that a few coefficients round the other way
        assert (decoded - theirs).abs().mean() < 0.15 * (x[0, 0] - theirs).abs().mean() + 0.5 / 127.5
        assert operator.log_likelihood(x, operator.draw(x, Noise.of(0, 1))).item() == 0
        assert operator.log_likelihood(-x, operator.draw(x, Noise.of(0, 1))).item() == -math.inf


def test_rounding_with_a_step_per_number():
    step = torch.tensor([0.5, 0.1])
    noise = RoundedNoise(step, 0.2)
    y = torch.round(torch.linspace(-30, 30, 121)[:, None] * torch.ones(2)) * step
    mass = [noise.log_prob(torch.tensor([[0.13, 0.13]]), row[None]) for row in y]  # both cells at once
    one = RoundedNoise(0.5, 0.2).log_prob(torch.tensor([[0.13]]), torch.tensor([[0.5]]))
    other = RoundedNoise(0.1, 0.2).log_prob(torch.tensor([[0.13]]), torch.tensor([[0.1]]))
    torch.testing.assert_close(mass[62], one + other)


def test_a_response_curve_lets_bright_light_spill():
    kernel, x = gaussian_kernel(1.0, 2), torch.full((1, 1, 9, 9), -0.9).double()
    x[0, 0, 4, 4] = 1
    linear, curved = Blur(kernel, (1, 9, 9), 0.1).forward(x), ResponseBlur(kernel, (1, 9, 9), 0.1).forward(x)
    assert curved[0, 0, 4, 5] > linear[0, 0, 4, 5] + 0.1
    flat = torch.full((1, 1, 9, 9), 0.3).double()
    torch.testing.assert_close(ResponseBlur(kernel, (1, 9, 9), 0.1).forward(flat), flat)
    torch.testing.assert_close(ResponseBlur(kernel, (1, 9, 9), 0.1, gamma=1.0).forward(x), linear)


@pytest.mark.parametrize(
    "operator",
    [
        ResponseBlur(gaussian_kernel(0.8, 1), (1, 4, 4), 0.1),
        PhaseRetrieval((1, 4, 4), 0.1),
        Clip((1, 4, 4), 0.1, gain=0.5),
        compose(Clip((1, 4, 4), 0.1, gain=0.5), Blur(gaussian_kernel(0.8, 1), (1, 4, 4), 1.0)),
    ],
    ids=["response", "phase", "clip", "clipped blur"],
)
def test_products_with_the_jacobian_are_finite_differences(operator):
    x, v = 0.5 * random(1, 1, 4, 4), random(1, *operator.shape, seed=1)
    found = operator.vjp(x, v).flatten()
    for i in range(0, 16, 3):
        step = 1e-6 * torch.eye(16).double()[i].view(1, 1, 4, 4)
        slope = ((operator.forward(x + step) - operator.forward(x - step)) / 2e-6 * v).sum()
        assert float(found[i]) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)


def test_clip_saturates():
    operator = Clip((1, 1, 4), 0.1)
    x = torch.tensor([[[[-0.9, -0.2, 0.3, 0.8]]]])
    torch.testing.assert_close(operator.forward(x), torch.tensor([[[[-1.0, -0.4, 0.6, 1.0]]]]))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Inpaint(torch.full((2, 2), 0.5), 0.1), "1 where"),
        (lambda: Inpaint(torch.zeros(2, 2), 0.1), "no pixel"),
        (lambda: Inpaint(torch.ones(2, 3), 0.1, (1, 4, 4)), "does not fit"),
        (lambda: Downsample(4, EVENT, 0.1), "does not divide"),
        (lambda: JPEG(EVENT), "multiples of 8"),
        (lambda: JPEG((1, 8, 8), 0), "between 1 and 100"),
        (lambda: ResponseBlur(gaussian_kernel(1.0, 1), EVENT, 0.1, gamma=0.0), "positive gamma"),
        (lambda: compressed(EVENT, 0, 0.1), "at least one row"),
        (lambda: Blur(torch.ones(2, 3), EVENT, 0.1), "odd sides"),
        (lambda: FourierSamples(torch.ones(3, 3), EVENT, 0.1), "cannot be"),
        (lambda: FourierSamples(torch.zeros(6, 6), EVENT, 0.1), "no frequency"),
        (lambda: Radon(torch.zeros(2), (1, 4, 6), 0.1), "square"),
        (lambda: Radon(torch.zeros(2), (1, 6, 6), 0.1, source=3.0), "outside"),
        (lambda: Clip(EVENT, 0.1, gain=0.0), "gain"),
        (lambda: PhaseRetrieval(EVENT, 0.1, 0.5), "at least 1"),
        (lambda: gaussian_kernel(0.0), "positive"),
    ],
)
def test_mistakes_are_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
