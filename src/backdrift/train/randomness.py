"""torch's own random state, which initial weights and dropout draw from: keyed, and kept apart from the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from backdrift.noise import mix


def random_state(device: torch.device) -> dict[str, Tensor]:
    """torch's random state, on the CPU and on the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what torch draws in this step a function of seed, step and process alone."""
    torch.manual_seed(mix(mix(mix(seed) ^ step) ^ rank))


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch for the block; the caller's random state comes back afterwards."""
    before = random_state(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before, device)
