"""Does a sample show the label that was asked for? A support-vector classifier fitted on real pictures judges.

The judge sees the real training pictures alone, never a sample, and it has errors of its own: its accuracy on
held-out real pictures is the figure that perfect samples would get, and it stands beside the agreement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.evaluate.intervals import wilson

_FIT_PICTURES = 5000  # fitting time grows with the square of the number of pictures


@dataclass(frozen=True)
class Share:
    """`count` successes among `n`, with Wilson's 95 % interval."""

    count: int
    n: int

    @property
    def value(self) -> float:
        return self.count / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.count, self.n)


@dataclass(frozen=True)
class Agreement:
    """`samples`: how many show the requested label; `heldout`: how many held-out pictures the judge gets right;
    `fitted`: on how many training pictures the judge was fitted."""

    samples: Share
    heldout: Share
    fitted: int


def label_agreement(
    samples: Tensor,
    sample_labels: Tensor,
    train: Tensor,
    train_labels: Tensor,
    heldout: Tensor,
    heldout_labels: Tensor,
) -> Agreement:
    """Share of `samples` (n, C, H, W) that the judge gives their requested `sample_labels` (n,).

    The judge is scikit-learn's SVC with C = 10 and the kernel exp(-gamma |x - y|^2), gamma = 1 / (pixels x
    variance of the training pixels), so that it does not depend on the scale of the pictures. It is fitted on
    `train` (at most 5,000 evenly spaced pictures of it), with nothing tuned.

    Raises `UserError` when labels are missing, do not fit their pictures, or name one class only.
    """
    from sklearn.svm import SVC

    for name, pictures, labels in (
        ("samples", samples, sample_labels),
        ("training pictures", train, train_labels),
        ("held-out pictures", heldout, heldout_labels),
    ):
        if len(labels) != len(pictures) or len(labels) == 0:
            raise UserError(f"There are {len(pictures)} {name} and {len(labels)} labels; give one label per picture.")
    if len(train_labels.unique()) < 2:
        raise UserError("All training pictures have the same label; agreement needs at least two classes.")
    step = -(-len(train) // _FIT_PICTURES)
    train, train_labels = train[::step].flatten(1).double(), train_labels[::step]
    judge = SVC(C=10.0, gamma=1 / (train.shape[1] * float(train.var())))
    judge.fit(train.numpy(), train_labels.numpy())

    def share(pictures: Tensor, labels: Tensor) -> Share:
        predicted = torch.from_numpy(judge.predict(pictures.flatten(1).double().numpy()))
        return Share(int((predicted == labels).sum()), len(labels))

    return Agreement(share(samples, sample_labels), share(heldout, heldout_labels), len(train))
