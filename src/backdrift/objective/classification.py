"""The objective of a classifier of noisy states: the cross-entropy of the label, at every noise level.

    L = E_t E_{x_t}  -log p(label | x_t, t)

Its minimum over all functions is the exact class posterior at each t, whose gradient guides (`guide.Classifier`).
Dhariwal and Nichol 2021, arXiv:2105.05233, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from backdrift.config import kind
from backdrift.errors import UserError
from backdrift.guide.classifier import NoisyClassifier
from backdrift.objective.base import Losses, Objective


@kind("objective.Classification")
@dataclass(frozen=True)
class Classification(Objective):
    """Trains a `guide.NoisyClassifier`, not a denoiser. It needs labels, none of them hidden (label_dropout = 0)."""

    def outputs(self, channels, classes):
        if not classes:
            raise UserError("A classifier needs labels, and these pictures have none.")
        return classes

    def network(self, net, process, target, shape, std, classes):
        return NoisyClassifier(net, process, std, shape, classes)

    def losses(self, network, head, samples):
        xt = network.process.corrupt(samples.x0, samples.t, samples.noise)
        loss = -network(xt, samples.t, samples.cond)
        return Losses(loss, loss.detach())
