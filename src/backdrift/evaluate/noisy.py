"""How often a classifier of noisy states is right, level by level, beside what could be known at that level.

No classifier is right about pure noise, so a share alone says little. Beside it stands Bayes' rule where the training
pictures are all that there is, p(label | x_t) proportional to the sum of exp(-|x_t - alpha x_i|^2 / (2 sigma^2)) over
those with the label. A classifier that has learned more than its pictures passes it where there is little noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.data.pictures import Pictures
from backdrift.evaluate.agreement import Share
from backdrift.guide.classifier import NoisyClassifier
from backdrift.noise import Noise
from backdrift.train.metrics import ANGLES

KNOWN, ASKED = 2000, 500  # training pictures behind Bayes' rule and held-out ones at each level, at most
AT_ONCE = 256


@dataclass(frozen=True)
class AtNoise:
    """angle: atan2(sigma, alpha std) in degrees. classifier, bayes: how many each gets right."""

    angle: float
    classifier: Share
    bayes: Share

    def to_dict(self) -> dict:
        """Plain numbers for JSON."""
        (low, high), n = self.classifier.interval, self.classifier.n
        right = {"accuracy": self.classifier.value, "low": low, "high": high, "n": n}
        return {"angle": self.angle, **right, "bayes": self.bayes.value}


@torch.no_grad()
def accuracy_by_noise(classifier: NoisyClassifier, pictures: Pictures, seed: int = 0) -> tuple[AtNoise, ...]:
    """The accuracy on the held-out part of `pictures` at 8 noise levels, one draw of the noise for each picture."""
    train, held_out = pictures.split()
    known, asked = (_some(part, most) for part, most in ((train, KNOWN), (held_out, ASKED)))
    points, labels = known.tensor(), known.labels
    device = next(classifier.net.parameters()).device
    x0, noise, schedule = asked.tensor(), Noise.of(seed, len(asked)), classifier.process.schedule
    found = []
    for k, angle in enumerate(ANGLES):
        ratio = math.tan(math.radians(angle)) * classifier.sigma_data
        t = float(schedule.time(torch.tensor(-2 * math.log(ratio), dtype=torch.float64)).clamp(0, 1))
        xt = classifier.process.corrupt(x0, t, noise.at("noisy", k))
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(t))
        shares = []
        for guess in (
            [classifier.logits(part.to(device), t).argmax(1).cpu() for part in xt.split(AT_ONCE)],
            [bayes(part, alpha * points, labels, sigma).argmax(1) for part in xt.split(AT_ONCE)],
        ):
            shares.append(Share(int((torch.cat(guess) == asked.labels).sum()), len(asked)))
        found.append(AtNoise(angle, *shares))
    return tuple(found)


def bayes(x: Tensor, points: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """p(label | x), (B, classes) float64, where x (B, *event) is one of `points` (N, *event) plus sigma times noise."""
    gaps = torch.cdist(x.flatten(1).double(), points.flatten(1).double()).square()
    shares = (-gaps / (2 * sigma**2)).softmax(1)
    return shares.new_zeros(len(x), int(labels.max()) + 1).index_add_(1, labels, shares)


def _some(pictures: Pictures, most: int) -> Pictures:
    """At most so many, evenly spaced."""
    return pictures.subset(slice(None, None, -(-len(pictures) // most)))
