"""Directions of variation: what can change in a picture, found in its representation or in the denoiser, and followed.

Three ways to find them. The principal directions of the representations of a set need no words for what varies
(`principal`). Where attributes are known for some pictures, the direction in which the representation follows one while
the others are held is a linear regression (`effects`). And at any noise level the derivative of the denoiser is the
covariance of what the picture may still become,

    d E[x_0 | x_t] / d x_t = alpha / sigma^2  Cov[x_0 | x_t],

so its leading eigenvectors are the changes that are still open there (`open_directions`; Manor and Michaeli 2024,
arXiv:2309.13598, section 3), of a state and not of a representation.

Representations are directions on a sphere, so the way between two of them is an arc (`arc`). How smooth the pictures
along it are is measured as the perceptual path length is (`path_length`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.noise import Noise
from backdrift.process.gaussian import Gaussian
from backdrift.represent.encoder import unit
from backdrift.represent.stages import Sampled


@dataclass(frozen=True, eq=False)
class Directions:
    """centre: (size,), where they begin. axes: (K, size) of length 1. spread: (K,), the data's standard deviation along
    each. share: (K,), of all variance."""

    centre: Tensor
    axes: Tensor
    spread: Tensor
    share: Tensor


def principal(representations: Tensor, count: int) -> Directions:
    """The `count` directions in which `representations` (N, size) vary most, largest first.

    Raises `UserError` where there are not as many.
    """
    if not 1 <= count <= min(representations.shape[1], len(representations) - 1):
        raise UserError(
            f"{len(representations)} representations of {representations.shape[1]} numbers have no {count} directions."
        )
    centre = representations.double().mean(0)
    values, vectors = torch.linalg.eigh((representations.double() - centre).T.cov())
    values = values.flip(0).clamp_min(0)
    axes = vectors.flip(1).T[:count]
    # the sign is free: the largest number of each is positive
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    top = values[:count]
    return Directions(centre.float(), axes.float(), top.sqrt().float(), (top / values.sum()).float())


def effects(representations: Tensor, attributes: Tensor) -> Tensor:
    """How representations (N, size) change per standard deviation of each of `attributes` (N, K), the others held.

    (K, size), by least squares. For one attribute of two values it is the difference of the two means, over their
    distance in standard deviations. Raises `UserError` for attributes that do not vary.
    """
    x, y = attributes.double(), representations.double()
    spread = x.std(0)
    if not bool((spread > 0).all()):
        raise UserError("An attribute that is the same in all pictures has no direction.")
    x = (x - x.mean(0)) / spread
    return torch.linalg.lstsq(x, y - y.mean(0)).solution.float()


@torch.no_grad()
def open_directions(
    denoiser: Denoiser,
    xt: Tensor,
    t: float,
    count: int = 3,
    *,
    cond: Mapping[str, Tensor] | None = None,
    rounds: int = 12,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The `count` directions in which x_0 is least known at the state xt (1, *event), and its standard deviation there.

    (count, *event) of length 1, and (count,), largest first. By subspace iteration: `rounds` derivatives of the
    denoiser along `count` directions. cond: of one sample.

    Raises `UserError` where there is no such derivative: at t = 0, or for a process that is not Gaussian.
    """
    if not isinstance(denoiser.process, Gaussian):
        raise UserError(f"Open directions need a Gaussian process, not {type(denoiser.process).__name__}.")
    alpha, sigma = (float(v) for v in denoiser.process.schedule.alpha_sigma(t))
    if not (alpha > 0 and sigma > 0):
        raise UserError(f"At time {t:g} the state says everything or nothing; choose one between.")
    if not 1 <= count <= xt.numel():
        raise UserError(f"A state of {xt.numel()} numbers has no {count} directions.")
    states = xt.expand(count, *xt.shape[1:]).contiguous()
    given = {name: value.expand(count, *value.shape[1:]) for name, value in (cond or {}).items()} or None

    def along(directions: Tensor) -> Tensor:
        tangents = directions.T.reshape(states.shape).to(states)
        return torch.func.jvp(lambda x: denoiser(x, t, given).mean, (states,), (tangents,))[1].flatten(1).double().T

    basis = torch.linalg.qr(Noise.of(seed, count).at("open").normal(states).flatten(1).double().T).Q
    for _ in range(rounds):
        basis = torch.linalg.qr(along(basis)).Q
    # of an exact denoiser the derivative is symmetric; of a trained one the symmetric part is what a covariance can be
    inner = basis.T @ along(basis)
    values, turn = torch.linalg.eigh((inner + inner.T) / 2)
    variance = values.flip(0) * sigma**2 / alpha
    return (basis @ turn.flip(1)).T.reshape(states.shape).to(xt), variance.clamp_min(0).sqrt().to(xt)


def arc(first: Tensor, second: Tensor, share: Tensor | float) -> Tensor:
    """Representations (B, size) at a share of the way from the first to the second, at constant speed on the sphere.

    share: a number or (B,), 0 is the first and 1 the second. Shoemake 1985.
    """
    a, b = unit(first.double()), unit(second.double())
    share = torch.as_tensor(share, dtype=torch.float64, device=a.device).reshape(-1, 1)
    angle = ((a * b).mean(1, keepdim=True)).clamp(-1, 1).acos()
    sine = angle.sin()
    straight = sine < 1e-6
    sine = sine.masked_fill(straight, 1.0)
    first_part = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / sine)
    second_part = torch.where(straight, share.expand_as(angle), (share * angle).sin() / sine)
    return (first_part * a + second_part * b).to(first)


def walk(
    model: Sampled, start: Tensor, direction: Tensor, amounts: Sequence[float], *, seed: int = 0, steps: int = 20
) -> Tensor:
    """Pictures (B, A, C, H, W) of the representations start + amount direction, for each of A `amounts`.

    start: (B, size). direction: (size,). Picture b keeps its noise, so what changes is the representation alone.
    """
    told = start[:, None] + torch.tensor(amounts, dtype=start.dtype)[None, :, None] * direction
    count = len(amounts)
    index = [b for b in range(len(start)) for _ in range(count)]
    made = model.sample(index=index, cond={"representation": told.flatten(0, 1)}, seed=seed, steps=steps)
    return made.unflatten(0, (len(start), count))


def path_length(
    make: Callable[[Tensor], Tensor],
    first: Tensor,
    second: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    step: float = 0.02,
    seed: int = 0,
) -> Tensor:
    """How far the output moves per share of the way, squared, at a random place on each way: (B,).

        distance(make(arc(share)), make(arc(share + step))) / step^2

    make: from representations (B, size) to pictures, the same noise for the same row. first, second: (B, size).
    distance: of two sets of pictures, (B,), quadratic, such as a squared distance of features. Its mean is the
    perceptual path length where the distance is perceptual. Karras et al. 2019, arXiv:1812.04948, Eq. 2.
    """
    share = (1 - step) * Noise.of(seed, len(first)).at("path").uniform(torch.zeros(len(first), dtype=torch.float64))
    here, there = (make(arc(first, second, share + move)) for move in (0.0, step))
    return distance(here, there) / step**2


def squared_in(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean squared difference of the features (B, F) of two sets of pictures, (B,)."""
    return lambda a, b: (features(a) - features(b)).double().square().flatten(1).mean(1)
