"""Inverse problems: measurements, and posterior samplers that reconstruct from them."""

from backdrift.inverse.guided import DPS, MMPS, TMPD, Exact, PiGDM, PosteriorSampler
from backdrift.inverse.measurement import Function, Linear, LinearMeasurement, Measurement, compose, stack
from backdrift.inverse.noise import GaussianNoise, PoissonNoise, RoundedNoise

__all__ = [
    "DPS",
    "MMPS",
    "TMPD",
    "Exact",
    "Function",
    "GaussianNoise",
    "Linear",
    "LinearMeasurement",
    "Measurement",
    "PiGDM",
    "PoissonNoise",
    "PosteriorSampler",
    "RoundedNoise",
    "compose",
    "stack",
]
