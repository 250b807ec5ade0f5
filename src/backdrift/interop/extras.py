"""Packages that only some bridges need: imported where they are used, and named where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from backdrift.errors import UserError


def need(package: str, extra: str) -> ModuleType:
    """The imported package. Raises `UserError` that names the extra to install where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"This needs {package}, which cannot be imported; pip install 'backdrift[{extra}]'.") from error


def first_line(error: Exception) -> str:
    """The first line of what an error says, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
