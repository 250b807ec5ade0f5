"""A U-Net in which nothing grows: every operation keeps the mean square of what passes at 1.

Activations and weights of an ordinary network drift upwards in training, and with them the effective learning rate
changes from layer to layer and from day to day. Here each layer's weight vectors have a fixed length, sums and
concatenations are weighted so that two independent inputs of unit mean square give an output of unit mean square,
and the residual stream is normalised on the way down. So there are no norms with statistics, no biases and no need of
weight decay. While training, the stored weights are themselves brought back to a mean square of 1 before each pass:
otherwise they grow, because the gradient of a normalised vector is orthogonal to it, and steps lose their effect. A
step of Adam with rate lr therefore turns every weight vector by about lr radians, in a layer of any size. Karras et
al. 2024, arXiv:2312.02696; equation numbers below are its own.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from backdrift.errors import UserError
from backdrift.nets.blocks import Further, attention, checked_labels, noise_features, wide
from backdrift.nets.look import ConditionTokens, appended, split
from backdrift.nets.pyramid import ascend, channels_last, check, descend, double, halve, levels

CONVOLVE = (F.linear, F.conv1d, F.conv2d, F.conv3d)
RESIDUAL = 0.3  # the share of a branch in a residual sum


def normalised(x, dims):
    """x over its root mean square along `dims`, in at least float32 inside."""
    y = x.to(wide(x.dtype))
    return (y * torch.rsqrt(y.square().mean(dims, keepdim=True) + 1e-8)).to(x.dtype)


def mp_silu(x):
    """silu over the root mean square it has on standard normal numbers (eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a, b, share: float):
    """(1 - share) a + share b, for independent a and b of unit mean square made to have it too (eq. 88)."""
    return torch.lerp(a, b, share) / math.hypot(share, 1 - share)


def mp_cat(a, b):
    """The channels of a and b, weighted so that both contribute equally to what reads them (eq. 103, t = 1/2)."""
    both = math.sqrt((a.shape[1] + b.shape[1]) / 2)
    return torch.cat([a * (both / math.sqrt(a.shape[1])), b * (both / math.sqrt(b.shape[1]))], dim=1)


def transformed() -> bool:
    """True inside `torch.func.jvp`, `grad` and their kin, which forbid writing to weights."""
    if torch.compiler.is_compiling():
        return forward_ad._current_level >= 0
    return torch._C._functorch.peek_interpreter_stack() is not None


class MPLayer(nn.Module):
    """A linear layer on the last dimension, or a convolution over `dims` axes; every output's weights have length 1.

    With length 1, an output is a sum over inputs whose squared weights add up to 1 (eq. 47 and 66). No bias.
    """

    def __init__(self, inputs: int, outputs: int, dims: int = 0, kernel: int = 1):
        super().__init__()
        self.convolve = CONVOLVE[dims]
        self.how = {"padding": kernel // 2} if dims else {}
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * dims))
        self.restore()

    @torch.no_grad()
    def restore(self):
        """Brings the stored weights to unit mean square; those that have it keep every bit."""
        # what the layer computes does not change, so autograd need not know: `.data` keeps it from noticing, where a
        # compiler, which sees to that itself, would lose the writing
        weight = self.weight if torch.compiler.is_compiling() else self.weight.data
        dims = tuple(range(1, weight.ndim))
        off = (weight.square().mean(dims, keepdim=True) - 1).abs() > 1e-5
        weight.copy_(torch.where(off, normalised(weight, dims), weight))

    def vectors(self):
        """The weights as they act."""
        return normalised(self.weight, tuple(range(1, self.weight.ndim))) / math.sqrt(self.weight[0].numel())

    def forward(self, x):
        return self.convolve(x, self.vectors().to(x.dtype), **self.how)


class MPConditioning(nn.Module):
    """Embeds noise angle, label and summary with unit mean square: noise (B,), cond -> (B, width)."""

    def __init__(self, features: int, width: int, classes: int, summary: int):
        super().__init__()
        self.features = features
        self.classes = classes
        self.noise_in = MPLayer(features, width)
        self.label = MPLayer(classes + 1, width) if classes else None
        self.summary = MPLayer(summary, width) if summary else None
        self.further = Further(features, width)

    def forward(self, noise, cond=None):
        with torch.autocast(noise.device.type, enabled=False):
            labels = checked_labels(cond, self.classes, noise)
            embedding = self.noise_in(noise_features(noise, self.features))
            if self.label is not None:
                marks = F.one_hot(labels, self.classes + 1) * math.sqrt(self.classes + 1)
                embedding = mp_sum(embedding, self.label(marks.to(embedding.dtype)), 0.5)
            if self.summary is not None:
                found = (cond or {}).get("summary")
                found = embedding.new_zeros(len(noise), self.summary.weight.shape[1]) if found is None else found
                embedding = mp_sum(embedding, self.summary(normalised(found.to(embedding), -1)), 0.5)
            return mp_silu(self.further(embedding, cond))


class MPAttention(nn.Module):
    """Every position of x (B, C, *space) looks at every other one and at the condition's tokens.

    Queries, keys and values have unit mean square.
    """

    def __init__(self, channels: int, head_width: int, tokens: int):
        super().__init__()
        self.heads = channels // head_width
        self.qkv = MPLayer(channels, 3 * channels)
        self.out = MPLayer(channels, channels)
        self.kv = MPLayer(tokens, 2 * channels) if tokens else None

    def forward(self, x, tokens):
        q, k, v = normalised(split(self.qkv(x.flatten(2).mT), 3, self.heads), -1)
        mask = None
        if tokens is not None:
            k, v, mask = appended(k, v, normalised(split(self.kv(tokens.values), 2, self.heads), -1), tokens.mask)
        mixed = self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return mp_sum(x, mixed.mT.unflatten(2, x.shape[2:]), RESIDUAL)


class MPBlock(nn.Module):
    """Two convolutions in a residual sum, told the embedding by a gain per channel, and attention where wanted.

    first_normalised: on the way down, x is brought to unit mean square per position; on the way up it is not, and
    the first convolution reads all of its channels.
    """

    def __init__(self, dims, inputs, outputs, embedding, dropout, tokens, head_width, first_normalised):
        super().__init__()
        self.first_normalised = first_normalised
        read = outputs if first_normalised else inputs
        self.shortcut = nn.Identity() if inputs == outputs else MPLayer(inputs, outputs, dims)
        self.first = MPLayer(read, outputs, dims, 3)
        self.modulation = MPLayer(embedding, outputs)
        self.gain = nn.Parameter(torch.zeros(()))  # how strongly the embedding modulates
        self.dropout = nn.Dropout(dropout)
        self.second = MPLayer(outputs, outputs, dims, 3)
        self.attention = MPAttention(outputs, head_width, tokens) if head_width else None

    def forward(self, x, embedding, tokens):
        if self.first_normalised:
            x = normalised(self.shortcut(x), 1)
        scale = 1 + self.gain * self.modulation(embedding)
        h = self.first(mp_silu(x))
        h = mp_silu(h * scale.view(*scale.shape, *[1] * (h.ndim - 2)))
        h = self.second(self.dropout(h))
        if not self.first_normalised:
            x = self.shortcut(x)
        x = mp_sum(x, h, RESIDUAL)
        return x if self.attention is None else self.attention(x, tokens)


class MPUNet(nn.Module):
    """The network of the module's docstring: x (B, channels, *space) of unit variance -> (B, outputs, *space).

    The choices are those of `UNet`, the width being free; zero before training, by a learned gain at its end.
    `config` is the arguments as plain JSON values. UserError: as for `UNet`.
    """

    def __init__(
        self,
        channels: int,
        *,
        outputs: int | None = None,
        dims: int = 2,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (1, 2),
        head_width: int = 32,
        dropout: float = 0.0,
        classes: int = 0,
        tokens: int = 0,
    ):
        super().__init__()
        widths = [width * m for m in multipliers]
        check(channels, dims, widths, blocks, attention, head_width, dropout, classes, tokens)
        if width % 2:
            raise UserError(f"The width must be even, for sines and cosines of the noise level; got {width}.")
        self.config = {
            "channels": channels,
            "outputs": outputs,
            "dims": dims,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "head_width": head_width,
            "dropout": dropout,
            "classes": classes,
            "tokens": tokens,
        }
        embedding = 4 * width
        self.conditioning = MPConditioning(width, embedding, classes, tokens)
        self.tokens = ConditionTokens(tokens, affine=False)
        self.entry = MPLayer(channels + 1, width, dims, 3)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()  # in the order of `down`; walked backwards
        for level, (c, down, up) in enumerate(levels(width, widths, blocks)):
            rest = (c, embedding, dropout, tokens, head_width if level in attention else None)
            self.down.append(nn.ModuleList(MPBlock(dims, i, *rest, True) for i in down))
            self.up.append(nn.ModuleList(MPBlock(dims, i, *rest, False) for i in up))
        self.middle = nn.ModuleList([MPBlock(dims, c, *rest, False), MPBlock(dims, c, *rest[:-1], None, False)])
        self.exit = MPLayer(widths[0], outputs or channels, dims, 3)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x, noise, cond=None, added=None):
        """Arguments, result and errors are those of `UNet.forward`."""
        told = self._told(x, noise, cond)
        seen, h = self._descend(x, told)
        if added is not None:
            *across, last = added
            seen, h = [s + a for s, a in zip(seen, across, strict=True)], h + last
        larger = [lambda h, *told: double(h)] * len(self.down)
        h = ascend(h, seen, self.up, larger=larger, join=mp_cat, told=told)
        return (self.exit(h) * self.gain).to(x.dtype)

    def trail(self, x, noise, cond=None, hint=None):
        """As `UNet.trail`."""
        seen, h = self._descend(x, self._told(x, noise, cond), hint)
        return [*seen, h]

    def _told(self, x, noise, cond):
        if self.training and not transformed():
            for layer in self.modules():
                if isinstance(layer, MPLayer):
                    layer.restore()
        dtype = self.entry.weight.dtype
        return self.conditioning(noise, cond).to(dtype), self.tokens(x.to(dtype), cond)

    def _descend(self, x, told, hint=None):
        h = x.to(self.entry.weight.dtype)
        h = self.entry(channels_last(torch.cat([h, torch.ones_like(h[:, :1])], dim=1)))  # ones stand for all biases
        smaller = [lambda h, *told: halve(h)] * len(self.down)
        return descend(h if hint is None else h + hint, self.down, self.middle, smaller=smaller, told=told)
