"""What a training step minimises: one loss per sample, and the times at which it is asked."""

from backdrift.objective.denoising import denoising, drop_labels
from backdrift.objective.times import Angle, LogitNormal, LogNormalSigma, Times, Uniform

__all__ = ["Angle", "LogNormalSigma", "LogitNormal", "Times", "Uniform", "denoising", "drop_labels"]
