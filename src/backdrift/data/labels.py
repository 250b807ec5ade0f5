"""Where labels and texts come from: class folders, a `metadata.jsonl`, or a column of integers.

Class folders: the first folder below the deepest one that holds every picture names the class, so `photos/cat/1.png`
and `photos/dog/2.png` are of the classes cat and dog, and a single folder is no class. A `metadata.jsonl` has one
JSON object per line, `file_name` relative to itself, and optionally `label` (a name, or an integer from 0) and `text`;
its labels win over folders.
"""

from __future__ import annotations

import json
import posixpath
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from backdrift.errors import UserError

Labels = tuple[Tensor | None, tuple[str, ...]]


def base_folder(names: list[str]) -> PurePosixPath:
    """The deepest folder that holds all of `names`."""
    return PurePosixPath(posixpath.commonpath([posixpath.dirname(name) for name in names]))


def from_folders(names: list[str], where: str) -> Labels:
    """Labels from class folders, or (None, ()) when there are none.

    Raises `UserError` when some pictures lie in class folders and some beside them.
    """
    depth = len(base_folder(names).parts)
    inside = [name.split("/")[depth:] for name in names]
    loose = [name for name, parts in zip(names, inside, strict=True) if len(parts) == 1]
    if len(loose) == len(names):
        return None, ()
    if loose:
        raise UserError(
            f"In {where} some pictures lie in class folders and {len(loose)} beside them ({loose[0]}); "
            "move those into a class folder, or all pictures into one folder."
        )
    return from_words([parts[0] for parts in inside])


def from_words(words: list[str]) -> Labels:
    """Labels from class names, in alphabetical order, or by value where all of them are whole numbers."""
    numbers = all(word.isascii() and word.isdigit() for word in words)
    classes = sorted(set(words), key=(lambda word: (int(word), word)) if numbers else None)
    number = {word: i for i, word in enumerate(classes)}
    return torch.tensor([number[word] for word in words]), tuple(classes)


def from_integers(values: np.ndarray, count: int, where: str, classes: tuple[str, ...] = ()) -> Labels:
    """Labels from integers (N,) or (N, 1); without `classes`, every number from 0 to the largest must occur.

    Raises `UserError` for other types, another length, negative numbers or numbers without a class.
    """
    if values.dtype.kind not in "iu":
        raise UserError(f"The labels in {where} are of type {values.dtype}; they must be integers 0, 1, 2, ...")
    if values.shape not in ((count,), (count, 1)):
        raise UserError(f"{where} holds {count} pictures but labels of shape {values.shape}; give one label each.")
    values = values.reshape(count)
    low, high = int(values.min()), int(values.max())
    if low < 0 or (classes and high >= len(classes)):
        known = f"0 to {len(classes) - 1}" if classes else "0 upwards"
        raise UserError(f"Label {low if low < 0 else high} in {where} is out of range; labels must be {known}.")
    if not classes:
        used = np.unique(values)
        if len(used) <= high:
            missing = int(np.flatnonzero(used != np.arange(len(used)))[0])
            raise UserError(
                f"The labels in {where} are out of range: they go up to {high} but none is {missing}; "
                "number the classes 0, 1, 2, ... without gaps."
            )
        classes = tuple(str(i) for i in range(high + 1))
    return torch.from_numpy(values.astype(np.int64)), classes


def read_metadata(text: str, names: list[str], folder: PurePosixPath, where: str) -> list[dict]:
    """The metadata of each of `names`, {} where a picture has none; `folder` is the folder that `where` lies in.

    Raises `UserError` for a line that is not JSON with a `file_name`, or that names a picture that is not there.
    """
    rows: dict[str, dict] = {}
    known = set(names)
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = str(folder / row["file_name"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"Line {number} of {where} is not a JSON object with a file_name.") from None
        if name not in known:
            raise UserError(f"Line {number} of {where} names {row['file_name']}, which is not among the pictures.")
        rows[name] = row
    return [rows.get(name, {}) for name in names]


def from_metadata(rows: list[dict], names: list[str], where: str) -> Labels:
    """Labels from the `label` of each row, or (None, ()) when no row has one.

    Raises `UserError` when only some have one, or when they are neither all names nor all integers.
    """
    values = [row.get("label") for row in rows]
    if all(value is None for value in values):
        return None, ()
    if None in values:
        raise UserError(
            f"{where} gives no label for {names[values.index(None)]}, but does for others; label all or none."
        )
    if all(isinstance(value, str) for value in values):
        return from_words(values)
    if all(type(value) is int for value in values):
        return from_integers(np.array(values, dtype=np.int64), len(values), where)
    raise UserError(f"The labels in {where} must be all names or all integers.")


def texts_of(rows: list[dict]) -> list[str] | None:
    """The `text` of each row, "" where it has none; None when no row has one."""
    return [str(row.get("text") or "") for row in rows] if any("text" in row for row in rows) else None
