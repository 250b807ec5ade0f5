"""diffusers' networks in the call that `Foreign` makes, net(x, told, cond), with labels and tokens checked before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from backdrift.errors import UserError
from backdrift.interop.foreign import conditions


class Labelled(nn.Module):
    """A UNet2DModel or DiTTransformer2DModel, called as `Foreign` calls it.

    classes: number of labels. none: the label that stands for no label, or None where there is none.
    """

    takes = ("label",)

    def __init__(self, net: nn.Module, classes: int, none: int | None, whole: bool = False):
        super().__init__()
        self.net, self.classes, self.none, self.whole = net, classes, none, whole
        self.optional = classes == 0 or none is not None

    def forward(self, x: Tensor, told: Tensor, cond: Mapping) -> Tensor:
        conditions(cond, self.takes if self.classes else ())
        told = told.round().long() if self.whole else told
        if not self.classes:
            return self.net(x, told).sample
        label = cond.get("label")
        if label is None:
            if self.none is None:
                raise UserError("This network knows no 'no label': give it labels, or load it with none=.")
            label = torch.full((len(x),), self.classes)
        label = torch.as_tensor(label).to(x.device)
        if label.shape != (len(x),) or label.is_floating_point():
            raise UserError(f"Labels must be {len(x)} integers, one per sample; got {tuple(label.shape)}.")
        last = self.classes - (self.none is None)
        if not torch.compiler.is_compiling() and bool(((label < 0) | (label > last)).any()):
            raise UserError(f"Labels must lie in 0..{self.classes - 1}; got {int(label.min())}..{int(label.max())}.")
        if self.none is not None:
            label = torch.where(label == self.classes, self.none, label)
        return self.net(x, told, class_labels=label).sample


class Attending(nn.Module):
    """A UNet2DConditionModel, called as `Foreign` calls it. none: tokens (M, width) that stand for no condition."""

    takes = ("tokens", "tokens_mask")
    classes = 0

    def __init__(self, net: nn.Module, width: int, none: Tensor | None):
        super().__init__()
        self.net, self.width = net, width
        self.optional = none is not None
        self.register_buffer("none", none, persistent=False)

    def forward(self, x: Tensor, told: Tensor, cond: Mapping) -> Tensor:
        conditions(cond, self.takes)
        tokens = cond.get("tokens", self.none)
        if tokens is None:
            raise UserError(f"This network attends to tokens: give cond tokens of shape (B, M, {self.width}).")
        if tokens.ndim == 2:
            tokens = tokens.expand(len(x), -1, -1)
        if tokens.ndim != 3 or len(tokens) != len(x) or tokens.shape[2] != self.width:
            raise UserError(
                f"The network attends to tokens of shape ({len(x)}, M, {self.width}), not {tuple(tokens.shape)}."
            )
        return self.net(x, told, tokens.to(x), encoder_attention_mask=cond.get("tokens_mask")).sample


def classes_of(family: str, config: Mapping) -> int:
    name = "num_embeds_ada_norm" if family == "DiTTransformer2DModel" else "num_class_embeds"
    return 0 if family == "UNet2DConditionModel" else config.get(name) or 0


def _unet(net: nn.Module, config: Mapping, none: int | Tensor | None) -> Labelled:
    if config.get("class_embed_type") is not None:
        raise UserError(f"A UNet2DModel whose class_embed_type is {config['class_embed_type']!r} takes no labels.")
    if config.get("time_embedding_type") == "fourier":
        raise UserError("A UNet2DModel with a fourier time embedding predicts a score, which no config describes.")
    classes = classes_of("UNet2DModel", config)
    if none is not None and not (isinstance(none, int) and 0 <= none < classes):
        raise UserError(f"none= is one of this network's {classes} labels, not {none!r}.")
    whole = config.get("time_embedding_type") == "learned"
    # a last label that stands for none is none of the labels
    return Labelled(net, classes - (none is not None and none == classes - 1), none, whole)


def _dit(net: nn.Module, config: Mapping, none: int | Tensor | None) -> Labelled:
    if none is not None:
        raise UserError("A DiTTransformer2DModel has a label of its own for 'no label'; leave none= out.")
    classes = classes_of("DiTTransformer2DModel", config)
    return Labelled(net, classes, classes)


def _conditional(net: nn.Module, config: Mapping, none: int | Tensor | None) -> Attending:
    for name in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim"):
        if config.get(name) is not None:
            raise UserError(f"A UNet2DConditionModel with {name} {config[name]!r} needs more than tokens.")
    width = config.get("cross_attention_dim", 1280)
    if not isinstance(width, int):
        raise UserError("A UNet2DConditionModel that attends to tokens of several widths cannot be a denoiser.")
    if none is not None and not (isinstance(none, Tensor) and none.ndim == 2 and none.shape[1] == width):
        raise UserError(f"none= is a tensor of tokens (M, {width}) here.")
    return Attending(net, width, none)


FAMILIES = {"UNet2DModel": _unet, "UNet2DConditionModel": _conditional, "DiTTransformer2DModel": _dit}
