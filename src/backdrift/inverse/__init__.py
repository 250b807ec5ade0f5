"""Inverse problems: measurements, and posterior samplers that reconstruct from them."""

from backdrift.inverse.camera import JPEG, ResponseBlur, jpeg_steps
from backdrift.inverse.corrected import MPGD, DiffPIR
from backdrift.inverse.fourier import Blur, FourierSamples, PhaseRetrieval, gaussian_kernel
from backdrift.inverse.guided import DPS, LGD, MMPS, TMPD, NormDPS, PiGDM, ScoreALD
from backdrift.inverse.measurement import Function, Linear, LinearMeasurement, Measurement, compose, compressed, stack
from backdrift.inverse.noise import GaussianNoise, PoissonNoise, RoundedNoise
from backdrift.inverse.optimise import REDdiff, ReSample
from backdrift.inverse.particles import Filtering, Twisted
from backdrift.inverse.pixels import Clip, Downsample, Identity, Inpaint
from backdrift.inverse.radon import Radon, filtered
from backdrift.inverse.range import DDNM, DDRM, Replacement
from backdrift.inverse.reconstruction import Reconstruction, reconstruct
from backdrift.inverse.sampler import Exact, PosteriorSampler
from backdrift.inverse.split import DAPS, SplitGibbs
from backdrift.inverse.stationary import Stationary, power_law
from backdrift.inverse.stepped import MCG, StepDPS

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "JPEG",
    "LGD",
    "MCG",
    "MMPS",
    "MPGD",
    "TMPD",
    "Blur",
    "Clip",
    "DiffPIR",
    "Downsample",
    "Exact",
    "Filtering",
    "FourierSamples",
    "Function",
    "GaussianNoise",
    "Identity",
    "Inpaint",
    "Linear",
    "LinearMeasurement",
    "Measurement",
    "NormDPS",
    "PhaseRetrieval",
    "PiGDM",
    "PoissonNoise",
    "PosteriorSampler",
    "REDdiff",
    "Radon",
    "ReSample",
    "Reconstruction",
    "Replacement",
    "ResponseBlur",
    "RoundedNoise",
    "ScoreALD",
    "SplitGibbs",
    "Stationary",
    "StepDPS",
    "Twisted",
    "compose",
    "compressed",
    "filtered",
    "gaussian_kernel",
    "jpeg_steps",
    "power_law",
    "reconstruct",
    "stack",
]
