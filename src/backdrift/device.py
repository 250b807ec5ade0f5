"""Where to compute: the accelerator if there is one, or what the user names."""

from __future__ import annotations

import torch

from backdrift.errors import UserError


def pick(device: str | torch.device | None) -> torch.device:
    """The device of this name; None is the accelerator, or the CPU where there is none.

    Raises `UserError` for a name that torch does not know or a device that cannot be used here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"The device {str(device)!r} cannot be used here; leave it out, or choose cpu.") from error
    return found
