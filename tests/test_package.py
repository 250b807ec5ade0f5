"""The package as a user meets it: `import backdrift as bd` is light, and every name it offers is there."""

import subprocess
import sys

import pytest

import backdrift as bd
from command import in_new_process


@pytest.mark.parametrize("name", bd.__all__)
def test_every_name_is_there(name):
    assert getattr(bd, name) is not None and name in dir(bd)


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = bd.tarin


def test_functions_stay_functions_beside_folders_of_their_name():
    from backdrift.sample.plan import Plan
    from backdrift.train.loop import train

    assert callable(bd.train) and callable(bd.sample) and bd.train is not train
    assert bd.Plan is Plan and bd.sample.__module__ == "backdrift.sample"


def test_importing_loads_nothing_heavy():
    done = in_new_process(
        "import backdrift, sys; print(sorted({'torch', 'numpy', 'sklearn', 'PIL', 'tyro', 'rich'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "backdrift", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and done.stdout == f"backdrift {bd.__version__}\n"
