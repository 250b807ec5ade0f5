"""Inverse problems: measurements, and posterior samplers that reconstruct from them."""

from backdrift.inverse.fourier import Blur, FourierSamples, PhaseRetrieval, gaussian_kernel
from backdrift.inverse.guided import DPS, MMPS, TMPD, Exact, PiGDM, PosteriorSampler
from backdrift.inverse.measurement import Function, Linear, LinearMeasurement, Measurement, compose, stack
from backdrift.inverse.noise import GaussianNoise, PoissonNoise, RoundedNoise
from backdrift.inverse.pixels import Clip, Downsample, Inpaint
from backdrift.inverse.radon import Radon, filtered

__all__ = [
    "DPS",
    "MMPS",
    "TMPD",
    "Blur",
    "Clip",
    "Downsample",
    "Exact",
    "FourierSamples",
    "Function",
    "GaussianNoise",
    "Inpaint",
    "Linear",
    "LinearMeasurement",
    "Measurement",
    "PhaseRetrieval",
    "PiGDM",
    "PoissonNoise",
    "PosteriorSampler",
    "Radon",
    "RoundedNoise",
    "compose",
    "filtered",
    "gaussian_kernel",
    "stack",
]
