"""Denoisers in k-diffusion's form, D(x, sigma), where x = x_0 + sigma eps: theirs in, ours out, and EDM's networks.

    den = bd.interop.kdiffusion.load(model, (3, 32, 32))          # any callable: a function will do
    D = bd.interop.kdiffusion.export(den)                         # drives every sampler of k-diffusion

D returns E[x_0 | x] itself, so nothing has to be known about its training, and a schedule is only a choice of time:
x at our time t is alpha (x_0 + level eps) with level = sigma / alpha, so D may be asked at any time of any schedule
whose end still holds data (alpha(1) > 0). Karras et al. 2022, arXiv:2206.00364, Eq. 1 to 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.interop.foreign import Convention, Foreign, Level, conditions, mean_at
from backdrift.schedule import EDM, Schedule
from backdrift.target import X0


class Called(nn.Module):
    """D(x, sigma, name=condition, ...) in the call that `Foreign` makes. names: ours to theirs."""

    def __init__(self, call: Callable[..., Tensor], names: Mapping[str, str]):
        super().__init__()
        self.call, self.names = call, dict(names)

    def forward(self, x: Tensor, told: Tensor, cond: Mapping) -> Tensor:
        conditions(cond, tuple(self.names))
        return self.call(x, told, **{self.names[name]: value for name, value in cond.items()})


class OneHot(nn.Module):
    """EDM's net(x, sigma, class_labels) with labels as unit vectors (B, classes), zeros for none."""

    def __init__(self, net: nn.Module, classes: int):
        super().__init__()
        self.net, self.classes = net, classes

    def forward(self, x: Tensor, told: Tensor, cond: Mapping) -> Tensor:
        conditions(cond, ("label",) if self.classes else ())
        if not self.classes:
            return self.net(x, told, None)
        label = cond.get("label")
        label = torch.full((len(x),), self.classes) if label is None else torch.as_tensor(label)
        if label.shape != (len(x),) or bool(((label < 0) | (label > self.classes)).any()):
            raise UserError(f"Labels are one of 0..{self.classes - 1} (or {self.classes} for none) per sample.")
        marks = nn.functional.one_hot(label.to(x.device), self.classes + 1)[:, : self.classes]
        return self.net(x, told, marks.to(x.dtype))


def load(
    call: Callable[..., Tensor],
    event_shape: Sequence[int],
    *,
    schedule: Schedule | None = None,
    names: Mapping[str, str] | None = None,
    sigma_data: float = 0.5,
) -> Foreign:
    """D(x, sigma) as a denoiser.

    call: with x (B, *event) and sigma (B,) float32, and the conditions as keywords; returns E[x_0 | x] (B, *event).
    schedule: by default EDM from sigma = 0.002 to 80; give the range that D was trained on. names: of the
    conditions that D takes, ours to theirs; by default {"label": "class_cond"}. sigma_data: the data's standard
    deviation.

    Raises `UserError` for a schedule that ends without data.
    """
    names = {"label": "class_cond"} if names is None else names
    return _denoiser(Called(call, names), schedule or EDM(), event_shape, sigma_data)


def load_edm(net: nn.Module, *, schedule: Schedule | None = None, sigma_data: float | None = None) -> Foreign:
    """EDM's net(x, sigma, class_labels) as a denoiser, which says itself what pictures and labels it takes.

    net: with img_resolution, img_channels and label_dim; sigma_data is the network's own, or 0.5. schedule: by default
    EDM's sampler range, sigma from 0.002 to 80, within what the network supports.

    Raises `UserError` where the network lacks these.
    """
    missing = [name for name in ("img_resolution", "img_channels", "label_dim") if not hasattr(net, name)]
    if missing:
        raise UserError(f"This is no network of EDM's: it has no {missing[0]}; use load(call, event_shape) instead.")
    low, high = max(0.002, getattr(net, "sigma_min", 0.0)), min(80.0, getattr(net, "sigma_max", 80.0))
    shape = (net.img_channels, net.img_resolution, net.img_resolution)
    data = sigma_data or getattr(net, "sigma_data", 0.5)
    return _denoiser(OneHot(net, net.label_dim or 0), schedule or EDM(low, high), shape, data)


def _denoiser(net: nn.Module, schedule: Schedule, event_shape: Sequence[int], sigma_data: float) -> Foreign:
    if float(schedule.alpha_sigma(1.0)[0]) == 0:
        raise UserError(f"{type(schedule).__name__} has alpha(1) = 0, where no sigma is large enough; take EDM or VE.")
    return Foreign(net, Convention(schedule, X0(), Level()), tuple(event_shape), sigma_data)


class Exported(nn.Module):
    """Our denoiser as D(x, sigma), with what EDM's samplers ask of a network besides; made by `export`."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser
        schedule = denoiser.process.schedule
        self.sigma_min, self.sigma_max = (float((-schedule.logsnr(t) / 2).exp()) for t in (0.0, 1.0))

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise level that the network knows: itself."""
        return sigma

    def forward(self, x: Tensor, sigma: float | Tensor, class_cond: Tensor | None = None, **cond: Tensor) -> Tensor:
        """E[x_0 | x_0 + sigma eps = x], (B, *event).

        x: (B, *event). sigma: a number, () or (B,). class_cond: labels (B,), or unit vectors (B, classes) whose zeros
        stand for no label. cond: further conditions by our names.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64).cpu().reshape(-1).expand(len(x))
        if class_cond is not None:
            none = class_cond.shape[-1]
            one_hot = class_cond.ndim == 2
            label = torch.where(class_cond.any(1), class_cond.argmax(1), none) if one_hot else class_cond
            cond = {"label": label, **cond}
        return mean_at(self.denoiser, x, torch.ones_like(sigma), sigma, cond or None)


def export(denoiser: Denoiser) -> Exported:
    """Our denoiser as k-diffusion's D(x, sigma), which is also the call of EDM's networks.

    Beyond the ends of our schedule its answers are those of the end, for the same state over its norm.
    """
    return Exported(denoiser)
