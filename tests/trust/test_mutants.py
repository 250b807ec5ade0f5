"""The audits catch every sampler that is broken on purpose, and not the exact one."""

import pytest
from mutants import ANCESTRAL, MUTANTS, PRIOR, SEEN, Y

from backdrift.trust import Verdict, diagnose


def test_the_exact_one_passes():
    found = diagnose(ANCESTRAL, PRIOR, SEEN, Y, n=2500, steps=120)
    assert found.verdict is Verdict.PASS, found.lines()


# a few seconds for some, the rest with the slow tests
SOME = [name if i in range(3, 11) else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(MUTANTS)]


@pytest.mark.parametrize("name", SOME)
def test_the_lens_catches(name):
    found = diagnose(MUTANTS[name], PRIOR, SEEN, Y, n=800, steps=50)
    assert found.verdict is Verdict.FAIL, found.lines()
