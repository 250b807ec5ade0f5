"""Writes that are either done or not: a temporary file in the same folder, then a rename."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backdrift.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving the block it is flushed to disk and renamed to `path`.

    If the block raises, the temporary file is removed and `path` keeps what it held.

    Raises `UserError` when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(_explain(error, path)) from error
    except Exception as error:
        # safetensors and torch wrap the system's error in their own and leave its number in the text only
        if "No space left" in str(error) or "os error 28" in str(error):
            raise UserError(_explain(OSError(errno.ENOSPC, ""), path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _explain(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk is full: {path} was not written and what was there is kept; free some space and run it again."
    return f"Cannot write {path}: {error.strerror or error}."


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` to `path` atomically as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
