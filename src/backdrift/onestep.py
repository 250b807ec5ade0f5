"""What a few-step training shows of itself while it runs, since its loss says nothing: what its samples are like.

Every so often the averaged network makes a few samples in one evaluation (in four, where it learns no jumps). Their
Fréchet distance to the training part is the measure of progress. Their spread, over that of the data, tells a collapse:
a network that has collapsed makes one picture, or noise, and no further training brings it back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backdrift.data.pictures import Pictures
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.evaluate.distances import frechet
from backdrift.evaluate.features import PixelPCA, extract
from backdrift.sample import sample

LOST = 0.5  # of the best spread so far: less is a fall
ALIKE, WILD = 0.1, 3.0  # spreads that no training ends with, and none that has been better returns to
SOON = 500  # steps before which nothing can be said of a training that has not been better

NO_MEASURE = (
    "The loss of a few-step training is no measure of its progress: judge by the Fréchet distance of its samples, "
    "watched_fd in metrics.jsonl and in the report."
)


class Collapse(UserError):
    """A training whose samples have become alike, or noise, or not finite."""


class Watch:
    """An `on_sample` of `train` for one few-step training: called with the step and the averaged network.

    steps: of the training. It remembers the best spread so far, and nothing else.

    Raises `Collapse` when called, in words that say what was seen and what helps.
    """

    def __init__(self, pictures: Pictures, steps: int, n: int = 256):
        part = pictures.split()[0]
        real = part.tensor()
        self.steps, self.best = steps, 0.0
        self.features = PixelPCA.fit(real, min(24, real[0].numel(), len(real) - 1))
        self.target, self.spread = extract(self.features, real), spread(real)
        self.index = list(range(n))
        self.cond = part.cond(torch.arange(n) % len(part))

    @torch.no_grad()
    def __call__(self, step: int, network: Network) -> dict[str, float]:
        jumps = network.ends_path or "toward" in network.told
        count = 1 if jumps else 4
        device = next(network.parameters()).device
        cond = {name: value.to(device) for name, value in self.cond.items()}
        made = sample(network, index=self.index, steps=count, cond=cond, seed=977).cpu()
        share = spread(made) / self.spread
        self.check(step, share, "one evaluation" if count == 1 else f"{count} evaluations")
        distance = frechet(extract(self.features, made), self.target)
        return {"watched_evaluations": count, "watched_fd": distance, "watched_spread": share}

    def check(self, step: int, share: float, words: str) -> None:
        """Raises `Collapse` for this spread, over the data's, of samples made in so many evaluations."""
        late, good = step >= max(SOON, 0.75 * self.steps), self.best >= LOST
        if math.isnan(share):
            seen = "not finite"
        elif share > WILD and (good or late):
            seen = f"{share:.1f} times as spread as the data"
        elif (good and share < LOST * self.best) or (late and share < ALIKE):
            seen = f"almost alike, with {share:.2f} of the data's spread, where they have had {self.best:.2f}"
        else:
            self.best = max(self.best, share) if share <= WILD else self.best
            return
        raise Collapse(
            f"The training has collapsed by step {step} of {self.steps}: its samples in {words} are {seen}. Use a "
            "lower lr, a larger batch or another method; the loss would not have shown it."
        )


def spread(pictures: Tensor) -> float:
    """The root mean square, over pixels, of the standard deviation among the pictures; nan where one is not finite."""
    return float(pictures.flatten(1).double().var(0).mean().sqrt())
