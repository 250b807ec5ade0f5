"""Networks. All take `(x, noise, cond=None)` and return x's shape (`HalfUNet` a few numbers); each rebuilds itself from
its `config`."""

from backdrift.nets.dit import DiT
from backdrift.nets.encoder import ConvEncoder
from backdrift.nets.half_unet import HalfUNet
from backdrift.nets.mlp import MLP
from backdrift.nets.mp_unet import MPUNet
from backdrift.nets.unet import UNet, parameters_count

__all__ = ["MLP", "ConvEncoder", "DiT", "HalfUNet", "MPUNet", "UNet", "parameters_count"]
