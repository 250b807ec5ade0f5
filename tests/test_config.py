import json
from dataclasses import dataclass, field

import pytest

from backdrift import config
from backdrift.config import from_config, kinds, to_config
from backdrift.errors import UserError
from backdrift.process import Gaussian, Masking, Product
from backdrift.schedule import VP, Flow, Shifted, Tabulated


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(config, "_KINDS", dict(config._KINDS))

    @config.kind("toy.Box")
    @dataclass(frozen=True)
    class Box:
        size: int
        names: tuple[str, ...] = ()
        inner: object = None
        derived: int = field(init=False, default=0)

        def __post_init__(self):
            object.__setattr__(self, "derived", self.size * 2)

    return Box


def test_a_nested_choice_survives_json(toy):
    box = toy(3, ("a", "b"), {"s": Shifted(VP(0.2, 9.0), 1.5), "n": (1, 2.5, None, True)})
    text = json.dumps(to_config(box))
    assert from_config(json.loads(text)) == box
    assert json.loads(text)["kind"] == "toy.Box" and "derived" not in json.loads(text)


def test_processes_survive_json():
    process = Product({"x": Gaussian(Tabulated((0.5, 0.1))), "label": Masking(3, Flow())})
    assert from_config(json.loads(json.dumps(to_config(process)))) == process


def test_kinds_lists_one_family(toy):
    assert kinds("toy") == {"Box": toy}
    assert {"VP", "Flow", "Tabulated"} <= set(kinds("schedule"))
    assert kinds("schedu") == {}


def test_two_classes_cannot_share_a_name(toy):
    with pytest.raises(ValueError, match=r"toy\.Box"):
        config.kind("toy.Box")(toy)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"kind": "schedule.Nothing"}, "schedule.Nothing"),
        ({"kind": "schedule.VP", "beta_2": 1.0}, "beta_2"),
        ({"kind": "toy.Box", "size": 1, "derived": 2}, "derived"),
        ({"kind": "toy.Box"}, "size"),
        ({"kind": "schedule.VP", "beta_0": -1.0}, "beta_0"),
    ],
)
def test_a_config_that_fits_no_class_is_refused(toy, value, said):
    with pytest.raises(UserError, match=said):
        from_config({"deep": [value]})


def test_what_cannot_be_written_is_refused(toy):
    @dataclass(frozen=True)
    class Subclass(toy):
        pass

    # a subclass would come back as its parent; a mapping with "kind" would come back as a class
    for value in (object(), Subclass(1), toy(1, inner={1, 2}), {"kind": "toy.Box"}, Gaussian(Flow(), project=abs)):
        with pytest.raises(UserError):
            to_config(value)
