import errno
import json
import math
import os

import pytest
from safetensors import SafetensorError

from backdrift.errors import UserError
from backdrift.files import atomic_path, write_json, write_text


def test_a_write_is_there_complete_and_readable(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["a.txt"]


def test_the_temporary_file_lies_beside_with_the_same_suffix(tmp_path):
    path = tmp_path / "model.safetensors"
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".safetensors" and temporary != path
        temporary.write_bytes(b"1")
        assert not path.exists()
    assert path.read_bytes() == b"1"


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), ValueError("bad")])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(type(error)), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: No space left on device"),
    ],
)
def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UserError, match=r"disk is full: .*a\.txt"), atomic_path(path):
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    write_text(tmp_path / "file", "")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder"):
        with pytest.raises(UserError, match="Cannot write"):
            write_text(path, "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_json_is_strict(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
