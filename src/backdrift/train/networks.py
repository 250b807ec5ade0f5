"""Which network a run trains: one of the library's, a class from a user's file, or a module handed over in Python.

A choice is recorded in the run's config. Reading it back never runs code that the run folder names: a network from a
user's file is built again only when the user names that file again.
"""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.train.checkpoint import put


class NetChoice(ABC):
    """How to build a network; subclasses are frozen dataclasses.

    pace: the learning rate that suits it, as a multiple of the U-Net's.
    """

    pace: ClassVar[float] = 1.0

    @abstractmethod
    def build(self, shape: tuple[int, int, int], classes: int, outputs: int | None = None) -> nn.Module:
        """A new network for pictures of `shape` (C, H, W) and `classes` labels (0 for none).

        outputs: channels that it returns, C by default.
        """

    def start(self, net: nn.Module, tensors: Mapping[str, Tensor], complaint: str) -> None:
        """Put another run's weights into `net`, built by this choice. Raises `UserError`, `complaint` and the first
        tensor that does not fit."""
        put(tensors, net, complaint)

    def reading(self, net: nn.Module, text) -> nn.Module:
        """`net`, built by this choice, told what texts say. text: a `train.texts.TextEncoder`."""
        return text.around(net)


@kind("net.UNet")
@dataclass(frozen=True)
class UNetChoice(NetChoice):
    """The library's U-Net (`backdrift.nets.UNet`), whose arguments these are."""

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2)
    head_width: int = 32
    residual_resampling: bool = False
    dropout: float = 0.0
    tokens: int = 0

    def build(self, shape, classes, outputs=None):
        from backdrift.nets.unet import UNet

        return UNet(shape[0], outputs=outputs, dims=len(shape) - 1, classes=classes, **vars(self))


@kind("net.MPUNet")
@dataclass(frozen=True)
class MPUNetChoice(NetChoice):
    """The magnitude-preserving U-Net (`backdrift.nets.MPUNet`), whose arguments these are."""

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2)
    head_width: int = 32
    dropout: float = 0.0
    tokens: int = 0

    pace: ClassVar[float] = 20.0  # a step turns every weight vector by about the learning rate, in radians

    @classmethod
    def like(cls, unet: UNetChoice) -> MPUNetChoice:
        """On the pyramid of this U-Net."""
        names = ("width", "multipliers", "blocks", "attention", "head_width", "dropout")
        return cls(**{name: getattr(unet, name) for name in names})

    def build(self, shape, classes, outputs=None):
        from backdrift.nets.mp_unet import MPUNet

        return MPUNet(shape[0], outputs=outputs, dims=len(shape) - 1, classes=classes, **vars(self))


@kind("net.HalfUNet")
@dataclass(frozen=True)
class HalfUNetChoice(NetChoice):
    """The way down of the U-Net (`backdrift.nets.HalfUNet`), whose arguments these are: for classifiers."""

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2)
    head_width: int = 32
    dropout: float = 0.0

    @classmethod
    def like(cls, unet: UNetChoice) -> HalfUNetChoice:
        """The way down of this U-Net."""
        return cls(**{name: getattr(unet, name) for name in cls.__dataclass_fields__})

    def build(self, shape, classes, outputs=None):
        from backdrift.nets.half_unet import HalfUNet

        return HalfUNet(shape[0], outputs=outputs or classes, dims=len(shape) - 1, **vars(self))


@kind("net.DiT")
@dataclass(frozen=True)
class DiTChoice(NetChoice):
    """The transformer (`backdrift.nets.DiT`), whose arguments these are."""

    patch: int = 2
    width: int = 256
    depth: int = 8
    head_width: int = 64
    registers: int = 4
    rotary: bool = True
    dropout: float = 0.0
    tokens: int = 0

    pace: ClassVar[float] = 2.0

    @classmethod
    def for_side(cls, side: int) -> DiTChoice:
        """For pictures of this side, in pixels: up to 256 patches, and a small network for small pictures."""
        if side <= 12:
            return cls(width=128, depth=4)
        return cls(patch=max(2, -(-side // 16)))

    def build(self, shape, classes, outputs=None):
        from backdrift.nets.dit import DiT

        return DiT(shape[0], outputs=outputs, dims=len(shape) - 1, classes=classes, **vars(self))


@kind("net.File")
@dataclass(frozen=True)
class FileNet(NetChoice):
    """A class in someone's own file, called as `Name(shape=(C, H, W), classes=n)`. Make it with `FileNet.of`.

    Only where it must return other channels than it is given, it is called with `outputs=` too.
    The module is called as net(x, noise, cond), as `backdrift.denoiser.Network` says.
    """

    path: str
    name: str
    sha256: str

    @classmethod
    def of(cls, spec: str) -> FileNet:
        """From "my_file.py:Net". Raises `UserError` where there is no such file."""
        path, _, name = spec.rpartition(":")
        if not path or not name.isidentifier():
            raise UserError(f"A network of your own is named as my_file.py:Net, not {spec!r}.")
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"The network's file {path} cannot be read: {error.strerror}.") from error
        return cls(path, name, hashlib.sha256(content).hexdigest())

    def build(self, shape, classes, outputs=None):
        arguments = {"shape": shape, "classes": classes}
        if outputs not in (None, shape[0]):
            arguments["outputs"] = outputs
        make = getattr(_load(Path(self.path)), self.name, None)
        if make is None:
            raise UserError(f"{self.path} defines no {self.name}.")
        try:
            net = make(**arguments)
        except TypeError as error:
            words = ", ".join(f"{name}={value}" for name, value in arguments.items())
            raise UserError(f"{self.name} must accept {self.name}({words}): {error}.") from error
        if not isinstance(net, nn.Module):
            raise UserError(f"{self.path}:{self.name} must make a torch.nn.Module, not a {type(net).__name__}.")
        return net


@kind("net.Foreign")
@dataclass(frozen=True)
class ForeignNet(NetChoice):
    """The network of a folder that diffusers wrote, with its weights, for data of this standard deviation.

    The folder must stay where it is: its config says how the network is built.
    """

    path: str
    std: float

    def build(self, shape, classes, outputs=None):
        from backdrift.interop.diffusers import load
        from backdrift.interop.foreign import Restated

        return Restated(load(self.path), self.std)


@kind("net.Given")
@dataclass(frozen=True)
class GivenNet(NetChoice):
    """A module that was handed over in Python; it must be handed over again."""

    name: str

    def build(self, shape, classes, outputs=None):
        raise UserError(f"This run trained a {self.name} made in Python; pass such a module again as net=.")


def _load(path: Path):
    # never put into sys.modules: two files of one name must not meet
    spec = importlib.util.spec_from_file_location(f"backdrift_user_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"The network's file {path} is missing or is no Python file (.py).")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"The network's file {path} fails when it is loaded: {type(error).__name__}: {error}."
        ) from error
    return module
