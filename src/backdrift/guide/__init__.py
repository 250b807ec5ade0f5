"""Steering: whatever guides a model takes a `Denoiser` and returns one, so every sampler and audit works on it."""

from backdrift.guide.classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
