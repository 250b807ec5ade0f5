"""Classifiers of noisy states, log p(label | x_t): what `guide.Classifier` follows the gradient of.

A classifier that has only seen clean pictures is wrong about noisy ones, with confidence; one that guides is trained on
x_t at all t and is told t. Dhariwal and Nichol 2021, arXiv:2105.05233, section 4. Of an exact distribution with labels
it is a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from backdrift.errors import UserError
from backdrift.exact.denoiser import TensorDenoiser
from backdrift.posterior import expand
from backdrift.process.gaussian import Gaussian


class NoisyClassifier(nn.Module):
    """log p(label | x_t) by a network that sees what a `Network` sees: the state at unit variance, and the angle.

    Both depend on the noise-to-signal ratio alone, so it serves any schedule (`on`).

    net: called as net(x, noise) with x (B, *event) and noise (B,) float32; gives logits (B, classes). event_shape: of a
    state, where it is known. classes: the names of the labels, where they have some.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Gaussian,
        sigma_data: float,
        event_shape: tuple[int, ...] | None = None,
        classes: Sequence[str] = (),
    ):
        super().__init__()
        self.net, self.process, self.sigma_data = net, process, sigma_data
        self.event_shape, self.classes = event_shape, tuple(classes)

    def around(self, net: nn.Module) -> NoisyClassifier:
        """The same classifier with another net in its place."""
        return NoisyClassifier(net, self.process, self.sigma_data, self.event_shape, self.classes)

    def on(self, process: Gaussian) -> NoisyClassifier:
        """The same classifier for the states of another process, whose schedule may differ."""
        if process == self.process:
            return self
        return NoisyClassifier(self.net, process, self.sigma_data, self.event_shape, self.classes)

    def check_event(self, shape: Sequence[int]) -> None:
        """Raises `UserError` for states of another shape."""
        if self.event_shape is not None and tuple(shape) != tuple(self.event_shape):
            raise UserError(f"This classifier is for pictures of shape {tuple(self.event_shape)}, not {tuple(shape)}.")

    def logits(self, xt: Tensor, t: float | Tensor) -> Tensor:
        """(B, classes). xt: (B, *event); t: a float or (B,). Raises `UserError` for states of another shape."""
        self.check_event(xt.shape[1:])
        alpha, sigma = self.process.schedule.alpha_sigma(t)
        scale = (sigma**2 + (alpha * self.sigma_data) ** 2).rsqrt()
        noise = torch.atan2(sigma, alpha * self.sigma_data).to(device=xt.device, dtype=torch.float32).expand(len(xt))
        return self.net((expand(scale, xt) * xt).float(), noise)

    def forward(self, xt: Tensor, t: float | Tensor, cond: Mapping) -> Tensor:
        """log p(cond["label"] | x_t), (B,). Raises `UserError` without a label, or for the one that means none."""
        log_probs, label = self.logits(xt, t).log_softmax(-1), (cond or {}).get("label")
        if label is None or bool((label >= log_probs.shape[1]).any()):
            raise UserError(
                f"A classifier needs a label from 0 to {log_probs.shape[1] - 1} for every sample, none hidden."
            )
        return log_probs.gather(1, label.to(log_probs.device).view(-1, 1)).squeeze(1).to(xt)


def exact_classifier(denoiser: TensorDenoiser) -> Callable[[Tensor, Tensor, Mapping], Tensor]:
    """log p(label | x_t) of an exact distribution with labels, as `Classifier` takes it."""

    def log_prob(xt: Tensor, t: Tensor, cond: Mapping) -> Tensor:
        share = denoiser.distribution.log_share(denoiser.distribution.wanted(cond, len(xt)))
        return denoiser.log_prob(xt, t, cond) + share - denoiser.log_prob(xt, t)

    return log_prob
