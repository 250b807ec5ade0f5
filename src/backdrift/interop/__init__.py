"""Bridges to other libraries: their models as our denoisers, our denoisers as their models."""

from backdrift.interop import diffusers, kdiffusion, program
from backdrift.interop.foreign import Convention, Foreign

__all__ = ["Convention", "Foreign", "diffusers", "kdiffusion", "program"]
