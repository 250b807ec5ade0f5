"""Pictures on the command line that a model is to follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def hints(model, control: Sequence[Path] | None, hint: Sequence[Path] | None, fit) -> dict:
    """Condition pictures by name, (N, K, H, W) each, for `cond`; {} for none.

    control: ordinary pictures, of which the condition is taken as in training. hint: the condition itself, drawn.

    Raises `UserError` for pictures of another size, or a model that follows none or several.
    """
    import torch

    from backdrift.data import read_picture
    from backdrift.edit import conditions, pictures_of

    found = {}
    if control:
        found |= model.hint(torch.stack([read_picture(path, model.event_shape, fit) for path in control]))
    if hint:
        channels = next(iter(pictures_of(model.denoiser).values()), 1)
        shape = (channels, *model.event_shape[1:])
        drawn = torch.stack([read_picture(path, shape, fit, (0, 0, 0)) for path in hint])
        found |= conditions(model.denoiser, drawn, len(drawn))
    return found


def likeness(model, like: Sequence[Path] | None, fit) -> dict:
    """What the pictures `like` show, {"representation": (N, size)} for `cond`; {} for none.

    Raises `UserError` for a model that is not told such things, or pictures of another size.
    """
    import torch

    from backdrift.data import read_picture
    from backdrift.represent import informed, representation_of

    if not like:
        return {}
    informed(model.denoiser)
    pictures = torch.stack([read_picture(path, model.event_shape, fit) for path in like])
    return {"representation": representation_of(model.denoiser, pictures)}
