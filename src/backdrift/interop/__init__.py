"""Bridges to other libraries: their models as our denoisers, our denoisers as their models."""

from backdrift.interop import deepinv, diffusers, kdiffusion, program
from backdrift.interop.foreign import Convention, Foreign

__all__ = ["Convention", "Foreign", "deepinv", "diffusers", "kdiffusion", "program"]
