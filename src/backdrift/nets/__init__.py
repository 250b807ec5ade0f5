"""Networks. All take `(x, noise, cond=None)` and return x's shape; each rebuilds itself from its `config`."""

from backdrift.nets.mlp import MLP
from backdrift.nets.unet import UNet, parameters_count

__all__ = ["MLP", "UNet", "parameters_count"]
