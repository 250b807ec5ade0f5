"""Distributions with closed-form denoisers: the truth that everything else is measured against."""

from backdrift.exact.atoms import Atoms
from backdrift.exact.base import Distribution
from backdrift.exact.denoiser import ExactDenoiser
from backdrift.exact.gaussian import Gaussian
from backdrift.exact.measurement import LinearGaussian
from backdrift.exact.mixture import Mixture

__all__ = ["Atoms", "Distribution", "ExactDenoiser", "Gaussian", "LinearGaussian", "Mixture"]
