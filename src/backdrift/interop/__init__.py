"""Bridges to other libraries: their models as our denoisers and text encoders, our denoisers as theirs."""

from backdrift.interop import deepinv, diffusers, kdiffusion, program, text
from backdrift.interop.foreign import Convention, Foreign

__all__ = ["Convention", "Foreign", "deepinv", "diffusers", "kdiffusion", "program", "text"]
