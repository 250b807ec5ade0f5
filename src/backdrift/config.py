"""Choices as JSON: a frozen dataclass becomes `{"kind": name, field: value, ...}` and back.

Every class that a run or a plan may name is registered under a name that does not change when files move, so that a
folder written today is read by later releases. Reading a config only ever calls constructors registered here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from backdrift.errors import UserError

T = TypeVar("T", bound=type)
_KINDS: dict[str, type] = {}


def kind(name: str) -> Callable[[T], T]:
    """Register a dataclass under `name` ("schedule.VP") for `to_config` and `from_config`."""

    def register(cls: T) -> T:
        if name in _KINDS:
            raise ValueError(f"Two classes are registered as {name!r}.")
        _KINDS[name] = cls
        cls.kind = name
        return cls

    return register


def kinds(prefix: str) -> dict[str, type]:
    """The registered classes whose name starts with `prefix + "."`, by the rest of their name."""
    return {name[len(prefix) + 1 :]: cls for name, cls in _KINDS.items() if name.startswith(prefix + ".")}


def to_config(value: Any) -> Any:
    """A JSON-able copy of `value`: numbers, strings, None, sequences, mappings and registered dataclasses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = getattr(type(value), "kind", None)
        if _KINDS.get(name) is not type(value):
            raise UserError(f"{type(value).__name__} has no registered kind, so it cannot be written to a config.")
        fields = {f.name: to_config(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"kind": name, **fields}
    if isinstance(value, dict):
        if "kind" in value:
            raise UserError("A mapping with the key 'kind' cannot be written to a config: choose another name.")
        return {str(key): to_config(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_config(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"A {type(value).__name__} cannot be written to a config.")


def from_config(value: Any) -> Any:
    """The inverse of `to_config`; lists become tuples.

    Raises `UserError` for an unknown kind, and for fields that the class does not have or that are missing.
    """
    if isinstance(value, dict):
        fields = {key: from_config(item) for key, item in value.items() if key != "kind"}
        if "kind" not in value:
            return fields
        cls = _KINDS.get(value["kind"])
        if cls is None:
            raise UserError(f"The config names {value['kind']!r}, which this release does not know.")
        known = {f.name: f for f in dataclasses.fields(cls) if f.init}
        for name in fields:
            if name not in known:
                raise UserError(f"The config gives {value['kind']} a field {name!r} that it does not have.")
        for name, f in known.items():
            if name not in fields and f.default is f.default_factory is dataclasses.MISSING:
                raise UserError(f"The config gives {value['kind']} no {name!r}, which it needs.")
        return cls(**fields)
    if isinstance(value, (list, tuple)):
        return tuple(from_config(item) for item in value)
    return value
