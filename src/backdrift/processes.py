"""Which of a job's processes this is, as torchrun says in the environment; one of one where nothing says otherwise.

Nothing heavy is imported, so that the command line can ask before it loads torch.
"""

from __future__ import annotations

import os

_NEEDED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
)  # torchrun sets all of them; another tool's one is not ours


def _number(name: str, otherwise: int) -> int:
    return int(os.environ[name]) if all(each in os.environ for each in _NEEDED) else otherwise


def count() -> int:
    """How many processes work on this job."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process among them."""
    return _number("RANK", 0)


def local_rank() -> int:
    """The number of this process among those on its machine."""
    return _number("LOCAL_RANK", 0)
