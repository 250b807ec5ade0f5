"""Diffusion models with exact answers: train, sample in few steps, and know when to believe the samples.

    import backdrift as bd
    model = bd.train(bd.data.pictures("photos", size=64))
    bd.save_grid(model.sample(16, steps=10, seed=0), "grid.png")

The names below are what a user types first. They are loaded on first use, so that the command line can print its help
without loading torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from backdrift._version import __version__

_NAMES = {
    # functions and classes: name -> (module, attribute)
    "train": ("backdrift.model", "train"),
    "load": ("backdrift.model", "load"),
    "adapt": ("backdrift.adapter", "adapt"),
    "load_classifier": ("backdrift.model", "load_classifier"),
    "load_encoder": ("backdrift.model", "load_encoder"),
    "Model": ("backdrift.model", "Model"),
    "sample": ("backdrift.sample", "sample"),
    "distill": ("backdrift.distillation", "distill"),
    "diagnose": ("backdrift.trust", "diagnose"),
    "tune": ("backdrift.sample.tune", "tune"),
    "save_grid": ("backdrift.data", "save_grid"),
    "Noise": ("backdrift.noise", "Noise"),
    "Denoiser": ("backdrift.denoiser", "Denoiser"),
    "Network": ("backdrift.denoiser", "Network"),
    "TokenNetwork": ("backdrift.denoiser", "TokenNetwork"),
    "Plan": ("backdrift.sample.plan", "Plan"),
    "TrainOptions": ("backdrift.train.options", "TrainOptions"),
    "UserError": ("backdrift.errors", "UserError"),
}
_MODULES = {
    # modules that are used as namespaces: bd.schedule.VP()
    "data": "backdrift.data",
    "edit": "backdrift.edit",
    "evaluate": "backdrift.evaluate",
    "exact": "backdrift.exact",
    "grids": "backdrift.sample.grids",
    "guide": "backdrift.guide",
    "interop": "backdrift.interop",
    "inverse": "backdrift.inverse",
    "likelihood": "backdrift.likelihood",
    "nets": "backdrift.nets",
    "objective": "backdrift.objective",
    "process": "backdrift.process",
    "represent": "backdrift.represent",
    "schedule": "backdrift.schedule",
    "solvers": "backdrift.sample.solvers",
    "target": "backdrift.target",
    "trust": "backdrift.trust",
}

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _NAMES:
        module, attribute = _NAMES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'backdrift' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _function(name: str) -> property:
    # Python sets a package's attribute to a submodule when it is first imported. `bd.train` and `bd.sample` are
    # functions beside folders of the same name, and stay functions.
    return property(lambda _: __getattr__(name), lambda _, module: None)


class _Package(ModuleType):
    train = _function("train")
    sample = _function("sample")


sys.modules[__name__].__class__ = _Package
