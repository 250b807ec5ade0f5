"""How data is destroyed, and the tractable step back. Every process offers the same verbs (see `base.Process`)."""

from backdrift.process.base import Process
from backdrift.process.discrete import Masking, UniformTokens
from backdrift.process.gaussian import Centred, Gaussian
from backdrift.process.product import Product

__all__ = ["Centred", "Gaussian", "Masking", "Process", "Product", "UniformTokens"]
