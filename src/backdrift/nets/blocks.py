"""The parts that networks are built from: norms, attention, and what they are told about noise and label.

**Two ways through a norm and an attention.** Few-step objectives and the exact divergence need the derivative of the
network along a direction (`torch.func.jvp`). The fused kernels are the fast way, but attention's has no forward
derivative, and the fused norms break a compiler that traces through one. So each operation here is written twice, in
one function: the fused kernel where it is safe, plain arithmetic otherwise. They agree to rounding, and
`plain_arithmetic` alone decides.

**What the network knows about the noise.** Noise levels are told apart on a logarithmic scale, but the log of a ratio
is infinite at both ends, and so is its derivative. The embedding therefore takes the log-ratio softened at both ends,

    u(w) = log((sin w + d) / (cos w + d)),    w = atan2(sigma / sigma_data, alpha) in [0, pi/2],

which is finite and smooth everywhere: the derivative that continuous-time objectives use, sin w cos w du/dw, never
exceeds 1, du/dw itself never exceeds 1 / d + 1, and two levels 1e-3 apart at either end differ by about 1e-3 / d.
Sines and cosines of u at geometrically spaced frequencies follow.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from backdrift.errors import UserError

SOFTENING = 0.02  # d above: noise levels much below 2 % of the data's scale look alike
FREQUENCIES = (0.25, 8.0)  # radians per unit of u, which spans 7.9: from less than half a turn to ten turns
# tokens up to which plain attention is used on a CPU: in bf16 it trains about twice as fast as the fused kernel at any
# length, but its memory grows with the square; in other dtypes it is faster for the shortest sequences only
SHORT = {torch.bfloat16: 512}


def plain_arithmetic() -> bool:
    """True inside forward-mode differentiation and under a compiler, where fused kernels fail or are not needed."""
    return torch.compiler.is_compiling() or forward_ad._current_level >= 0


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of statistics, softmax and embeddings: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def standardise(x, dims, eps):
    """x with mean 0 and variance 1 over `dims`, in at least float32."""
    x = x.to(wide(x.dtype))
    x = x - x.mean(dims, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)


class GroupNorm(nn.Module):
    """Standardises groups of `group_width` channels of x (B, C, *space), then scales and shifts each channel.

    `affine=False` leaves scale and shift to the caller. Wu & He 2018. Width 16 is a whole number of vector registers
    on every current processor; torch's channels-last kernel took four times as long at 12 as at 16.
    """

    def __init__(self, channels: int, *, affine: bool = True, group_width: int = 16, eps: float = 1e-5):
        super().__init__()
        if channels % group_width:
            raise UserError(
                f"A group norm over {channels} channels needs a multiple of {group_width}; choose another width."
            )
        self.groups = channels // group_width
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x):
        if not plain_arithmetic():
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        grouped = x.unflatten(1, (self.groups, -1))  # a view in every memory format
        y = standardise(grouped, tuple(range(2, grouped.ndim)), self.eps).flatten(1, 2)
        if self.weight is not None:
            shape = (-1,) + (1,) * (x.ndim - 2)
            y = torch.addcmul(self.bias.view(shape), y, self.weight.view(shape))
        return y.to(x.dtype)


class LayerNorm(nn.Module):
    """Standardises the last dimension of x (..., C), then scales and shifts it. Ba et al. 2016."""

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5):
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x):
        if not plain_arithmetic():
            return F.layer_norm(x, (self.channels,), self.weight, self.bias, self.eps)
        y = standardise(x, -1, self.eps)
        if self.weight is not None:
            y = torch.addcmul(self.bias, y, self.weight)
        return y.to(x.dtype)


class RMSNorm(nn.Module):
    """Divides the last dimension of x (..., C) by its root mean square, then scales it. Zhang & Sennrich 2019.

    One way only: torch's own is plain arithmetic as well.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        y = x.to(wide(x.dtype))
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return y.to(x.dtype)


def attention(q, k, v, mask=None):
    """softmax(q k' / sqrt(d)) v, for q (..., N, d), k (..., M, d) and v (..., M, e); returns (..., N, e).

    mask: boolean, broadcast to (..., N, M), True where a query may look; every query must have somewhere to look.
    Plain arithmetic where `plain_arithmetic` asks for it, and for short sequences on a CPU (see `SHORT`).
    """
    short = q.device.type == "cpu" and k.shape[-2] <= SHORT.get(q.dtype, 64)
    if not (short or plain_arithmetic()):
        return F.scaled_dot_product_attention(q, k, v, mask)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # in bf16, products of anything else lose a fifth
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def modulate(y, scale, shift):
    """(1 + scale) y + shift: scale and shift (B, C) for y (B, C, *space), or (B, 1, C) for y (B, N, C)."""
    shape = scale.shape + (1,) * (y.ndim - scale.ndim)
    return torch.addcmul(shift.view(shape), y, (1 + scale).view(shape))


def zeroed(layer):
    """The layer with weight and bias set to zero: a residual branch that ends in it starts as nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def softened_log_ratio(w):
    """u(w) of the module's docstring, elementwise."""
    return torch.log(torch.sin(w) + SOFTENING) - torch.log(torch.cos(w) + SOFTENING)


def noise_features(w, width: int):
    """Sines and cosines of the softened log-ratio of the noise angle w (B,): (B, width), in at least float32.

    Scaled to a mean square of 1.
    """
    w = w.to(wide(w.dtype))
    low, high = FREQUENCIES
    exponents = torch.linspace(0, 1, width // 2, dtype=w.dtype, device=w.device)
    phase = softened_log_ratio(w)[:, None] * (low * (high / low) ** exponents)
    return math.sqrt(2) * torch.cat([phase.sin(), phase.cos()], dim=1)


def wide_linear(layer, x):
    """The linear layer in float32, or in the precision of its weights if that is higher."""
    dtype = wide(layer.weight.dtype)
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def checked_labels(cond, classes: int, noise):
    """The label of each sample of noise (B,) as indices (B,); all `classes`, which means none, where it is missing.

    UserError: no such label, or not one integer per sample.
    """
    batch, device = len(noise), noise.device
    label = (cond or {}).get("label")
    if label is None:
        return torch.full((batch,), classes, device=device)
    if classes == 0:
        raise UserError("This network was built without classes, so it takes no label; leave the label out.")
    label = torch.as_tensor(label, device=device)
    if label.shape != (batch,) or label.is_floating_point():
        found = f"{label.dtype} of shape {tuple(label.shape)}".removeprefix("torch.")
        raise UserError(f"Labels must be {batch} integers, one per sample; got {found}.")
    if not torch.compiler.is_compiling() and bool(((label < 0) | (label > classes)).any()):
        raise UserError(
            f"Labels must lie in 0..{classes - 1} (or be {classes} for none); "
            f"got {label.min().item()}..{label.max().item()}."
        )
    return label.long()


class Further(nn.Module):
    """Adds further angles in `cond`, (B,) in [0, pi/2] each, to the embedding (B, width).

    What `listen` adds starts as nothing, so a trained network that begins to listen is what it was.
    """

    def __init__(self, features: int, width: int):
        super().__init__()
        self.features, self.width = features, width
        self.layers = nn.ModuleDict()

    def listen(self, names):
        """From now on heed the angles of these names, too."""
        for name in names:
            if name not in self.layers:
                into, out = nn.Linear(self.features, self.width), zeroed(nn.Linear(self.width, self.width))
                self.layers[name] = nn.ModuleList([into, out])

    def forward(self, embedding, cond):
        for name, (into, out) in self.layers.items():
            if name in (cond or {}):
                hidden = F.silu(wide_linear(into, noise_features(cond[name], self.features)))
                embedding = embedding + wide_linear(out, hidden)
        return embedding


class Conditioning(nn.Module):
    """Embeds noise angle, label and summary: noise (B,), cond {"label": (B,), "summary": (B, E)} -> (B, width).

    Labels run from 0 to classes - 1; `classes` itself means "no label", and so does a missing label. `classes=0`
    takes none. A summary is E numbers of a condition as a whole, such as the mean over a text; E is `summary`, and 0
    takes none. Zeros are no summary, and so is a missing one. Everything here is computed in float32 at least, whatever
    the dtype of the weights and under autocast too: bf16 has 8 bits and would merge neighbouring noise levels.
    """

    def __init__(self, width: int, classes: int = 0, summary: int = 0):
        super().__init__()
        self.width = width
        self.classes = classes
        self.noise_in = nn.Linear(width, width)
        self.noise_out = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.summary = nn.Linear(summary, width, bias=False) if summary else None
        self.further = Further(width, width)

    def forward(self, noise, cond=None):
        with torch.autocast(noise.device.type, enabled=False):
            features = noise_features(noise, self.width)
            labels = checked_labels(cond, self.classes, noise)
            hidden = F.silu(wide_linear(self.noise_in, features))
            embedding = wide_linear(self.noise_out, hidden)
            if self.label is not None:
                embedding = embedding + self.label(labels).to(embedding.dtype)
            if self.summary is not None and "summary" in (cond or {}):
                embedding = embedding + F.linear(cond["summary"].to(embedding), self.summary.weight.to(embedding))
            return F.silu(self.further(embedding, cond))
