"""Steering: whatever guides a model takes a `Denoiser` and returns one, so every sampler and audit works on it."""

from backdrift.guide.annealed import Annealed
from backdrift.guide.classifier import NoisyClassifier, exact_classifier
from backdrift.guide.classifier_free import AutoGuidance, ClassifierFree
from backdrift.guide.composed import Composed
from backdrift.guide.gradient import Apart, Classifier, Reward
from backdrift.guide.mixing import Plain, Projected, Rescaled
from backdrift.guide.particles import Particles
from backdrift.guide.weights import Interval, Ramp, Rows, plus

__all__ = [
    "Annealed",
    "Apart",
    "AutoGuidance",
    "Classifier",
    "ClassifierFree",
    "Composed",
    "Interval",
    "NoisyClassifier",
    "Particles",
    "Plain",
    "Projected",
    "Ramp",
    "Rescaled",
    "Reward",
    "Rows",
    "exact_classifier",
    "plus",
]
