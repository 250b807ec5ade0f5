"""What every kind of input becomes before anything is decoded: names, labels, and a way to open each picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Listing:
    """N pictures that can be opened: `open(i)` gives a PIL picture, not yet decoded where it comes from a file."""

    names: list[str]
    open: Callable[[int], object]
    labels: Tensor | None
    classes: tuple[str, ...]
    texts: list[str] | None = None
    assumed: str | None = None  # how the numbers of an array were read
