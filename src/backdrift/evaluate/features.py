"""Feature extractors: what turns pictures into the vectors that the figures compare.

An extractor is any object with a `.name` that maps pictures (B, C, H, W) in [-1, 1] to features (B, F). Its name stands
beside every figure, because a Fréchet distance under one extractor says nothing about another. Fitted extractors
learn from the training pictures only and are frozen afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdrift.errors import UserError

_FIT_PICTURES = 2048  # the largest eigenproblem of PixelPCA; above this many pixels it sees as many pictures


@torch.no_grad()
def extract(extractor: Callable[[Tensor], Tensor], pictures: Tensor, block: int = 512) -> Tensor:
    """Features (N, F) in float64 of `pictures` (N, C, H, W), `block` pictures at a time."""
    return torch.cat([extractor(part).double() for part in pictures.split(block)])


@dataclass(frozen=True)
class Pixels:
    """The pixels themselves: (B, C, H, W) -> (B, C H W)."""

    name: str = "pixels"

    def __call__(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)


@dataclass(frozen=True, eq=False)
class PixelPCA:
    """Coordinates on the leading principal components of the pixels: (B, C, H, W) -> (B, components), float64.

    The components are orthonormal and not rescaled, so that distances keep the pixels' unit.
    """

    mean: Tensor
    components: Tensor
    name: str

    @classmethod
    def fit(cls, train: Tensor, components: int = 24) -> PixelPCA:
        """Principal components of `train` (N, C, H, W); from 2,048 evenly spaced pictures where these have more
        than 2,048 pixels.

        Raises `UserError` when there are fewer pixels, or not more pictures, than components.
        """
        pixels = train[0].numel()
        if pixels > _FIT_PICTURES:
            train = train[:: -(-len(train) // _FIT_PICTURES)]
        if not 1 <= components <= min(pixels, len(train) - 1):
            raise UserError(
                f"{components} principal components need at least as many pixels and one picture more, but there are "
                f"{len(train)} pictures of {pixels} pixels; ask for fewer components."
            )
        x = train.flatten(1).double()
        mean = x.mean(0)
        x = x - mean
        if len(x) >= pixels:
            axes = torch.linalg.eigh(x.T @ x).eigenvectors[:, -components:].T
        else:  # the same axes from the smaller matrix of inner products between pictures
            vectors = torch.linalg.eigh(x @ x.T).eigenvectors[:, -components:]
            axes = torch.linalg.qr(x.T @ vectors).Q.T
        return cls(mean, axes, f"pixel PCA {components}")

    def __call__(self, pictures: Tensor) -> Tensor:
        return (pictures.flatten(1).double() - self.mean.to(pictures.device)) @ self.components.to(pictures.device).T


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """The last hidden layer of a small convolutional classifier trained on the data: (B, C, H, W) -> (B, 64).

    It sees what tells the classes apart and is blind to much else; read it beside a pixel extractor.
    """

    body: nn.Module
    head: nn.Module
    name: str = "classifier trained on the data"

    @classmethod
    def fit(
        cls, train: Tensor, labels: Tensor, steps: int = 500, batch: int = 128, seed: int = 0
    ) -> ClassifierFeatures:
        """Train on `train` (N, C, H, W) and `labels` (N,), whole numbers from 0: Adam, one-cycle learning rate.

        The same data and seed give the same network on one machine with one number of threads; torch's global
        random state is left as it was.
        """
        _check_labels(train, labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            body = _body(train.shape[1], min(train.shape[2:]))
            head = nn.Linear(64, int(labels.max()) + 1)
            net = nn.Sequential(body, head)
            optimiser = torch.optim.Adam(net.parameters())
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
            for _ in range(steps):
                rows = torch.randint(len(train), (batch,))
                loss = nn.functional.cross_entropy(net(train[rows].float()), labels[rows].long())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        return cls(body.eval().requires_grad_(False), head.eval().requires_grad_(False))

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.body(pictures.float())

    @torch.no_grad()
    def predict(self, pictures: Tensor, block: int = 512) -> Tensor:
        """The most probable label (N,) of each of `pictures` (N, C, H, W)."""
        return torch.cat([self.head(self(part)).argmax(1) for part in pictures.split(block)])


def _body(channels: int, side: int) -> nn.Sequential:
    """Down to about 8 pixels on the shorter side at once, halved until 4 remain, then one hidden layer of 64.

    The first stride keeps the cost of a step nearly independent of the pictures' size.
    """
    stride = max(1, side // 8)
    layers: list[nn.Module] = [nn.Conv2d(channels, 32, 2 * stride + 1, stride, padding=stride), nn.ReLU()]
    width, side = 32, -(-side // stride)
    while side > 4:
        layers += [nn.Conv2d(width, 64, 3, stride=2, padding=1), nn.ReLU()]
        width, side = 64, (side + 1) // 2
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(width * 16, 64), nn.ReLU()]
    return nn.Sequential(*layers)


def _check_labels(pictures: Tensor, labels: Tensor) -> None:
    if len(labels) != len(pictures):
        raise UserError(f"There are {len(pictures)} pictures and {len(labels)} labels; give one label per picture.")
    if labels.is_floating_point() or int(labels.min()) < 0:
        raise UserError("Labels must be whole numbers from 0 upwards.")
    if len(labels.unique()) < 2:
        raise UserError("All pictures have the same label; a classifier needs at least two classes.")
