"""bf16 where it pays. Weights, optimiser and averages are always float32; only the network's arithmetic changes.

Whether it pays is not a property of a processor's name: one matrix product of each kind is timed, once, when a run
begins. The answer belongs to the run, whose later parts must not depend on how busy the machine is then.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from enum import Enum

import torch

ADVANTAGE = 1.3  # a bf16 product must be this much faster: the casts around it cost something


class Precision(str, Enum):
    """Arithmetic of the network while it is trained. auto: whichever a timed product finds faster."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


def resolve(precision: Precision, device: torch.device) -> Precision:
    """`precision`, with `auto` decided by timing a product on `device`."""
    if precision is not Precision.auto:
        return precision
    pays = _seconds(torch.bfloat16, device) * ADVANTAGE < _seconds(torch.float32, device)
    return Precision.bf16 if pays else Precision.fp32


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context in which the network runs."""
    if precision is Precision.bf16:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The fastest of a few products, in seconds."""
    size = 512 if device.type == "cpu" else 4096
    a = torch.ones(size, size, dtype=dtype, device=device)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # .item() waits for an accelerator
        times.append(time.perf_counter() - start)
    return min(times)
