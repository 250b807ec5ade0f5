"""What the tasks share that train on top of a run (--from): its choices are kept, and the pictures must suit it."""

from __future__ import annotations

from dataclasses import replace

from backdrift.errors import UserError


def base_of(typed, task: str):
    """The `Run` that --from names. Raises `UserError` where there is none, or something typed belongs to it."""
    from backdrift.run import Run

    if typed.from_ is None:
        raise UserError(f"--task {task} stands on a trained run; add --from RUN.")
    shapes = (typed.unet, typed.mp_unet, typed.dit)
    fixed = {
        "--network": typed.network is not None,
        "--net": typed.net is not None,
        "--unet, --mp-unet and --dit": any(shape != type(shape)() for shape in shapes),
        "--target": typed.target is not None,
        "--schedule": typed.schedule is not None,
        "the loss's options": typed.loss != type(typed.loss)(),
    }
    for name, said in fixed.items():
        if said:
            raise UserError(f"With --task {task} the network and what it predicts are the base's: leave out {name}.")
    return Run(typed.from_)


def kept(made, base):
    """`made` with what must be the base's: scalings, objective and the reader of texts.

    Raises `UserError` for a base that is no denoiser.
    """
    from backdrift.objective.denoising import Denoising

    options = base.options()
    if not isinstance(options.objective, Denoising):
        raise UserError(f"{base.folder} is no run that was trained to denoise, so nothing can be trained upon it.")
    std = base.config()["data"]["std"] if options.std is None else options.std
    names = ("schedule", "target", "objective", "text")
    return replace(made, std=std, **{name: getattr(options, name) for name in names})


def suited(pictures, base):
    """The pictures with the base's classes for theirs. Raises `UserError` where they do not suit it."""
    data = base.config()["data"]
    shape, classes = tuple(data["shape"]), tuple(data["classes"])
    if pictures.shape != shape:
        ours, theirs = (" x ".join(map(str, each)) for each in (shape, pictures.shape))
        raise UserError(
            f"{base.folder} makes pictures of {ours} (channels, height, width), and these are {theirs}; "
            "choose their --pictures.size and --pictures.channels to suit."
        )
    if pictures.classes == classes:
        return pictures
    if pictures.labels is None or not classes:
        return replace(pictures, classes=classes, labels=None)
    strange = [name for name in pictures.classes if name not in classes]
    if strange:
        raise UserError(
            f"{base.folder} knows no class {strange[0]!r}; put the pictures into one folder without class folders."
        )
    import torch

    numbers = torch.tensor([classes.index(name) for name in pictures.classes])
    return replace(pictures, classes=classes, labels=numbers[pictures.labels])
