"""A way to call the command line in this process, and one small run on the digits that many tests look at."""

from pathlib import Path
from typing import NamedTuple

import pytest

from backdrift.cli import main
from command import TINY, save_photos


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def cli(capsys):
    """cli("sample", folder, "--n", 3) -> Outcome."""

    def call(*words) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return Outcome(ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(cli):
    """Like `cli` for a user's mistake; returns the one sentence that it must get."""

    def call(*words) -> str:
        status, out, err = cli(*words)
        assert status == 2 and out == "", (status, out, err)
        assert err.startswith("backdrift: ") and err.count("\n") == 1 and err.rstrip().endswith((".", "--help.")), err
        return err.removeprefix("backdrift: ").strip()

    return call


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A run of 8 steps on the digits; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "digits run"
    with pytest.raises(SystemExit) as ended:
        main(["train", "--run", str(folder), *map(str, TINY)])
    assert ended.value.code == 0
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """24 colour pictures of 8 x 8 in two class folders."""
    return save_photos(tmp_path / "photos")
