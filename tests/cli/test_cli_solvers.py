"""Solvers by name on the command line, and the table that measures them."""

import pytest

import backdrift as bd
from backdrift.cli.choices import solver
from backdrift.errors import UserError
from backdrift.sample import audit


def test_every_solver_that_needs_nothing_has_its_name():
    for name in bd.solvers.__all__:
        if name != "GaussianStart":  # needs the data's mean and variance
            assert solver(name.lower()) == getattr(bd.solvers, name)(), name
    assert solver(None) is None
    assert solver("unipc2") == bd.solvers.UniPC(2) and solver("DEIS-2") == bd.solvers.DEIS(2)
    for word, sentence in (("unipc9", "order 1 to 3, not 9"), ("gaussianstart", "no solver"), ("ddim2", "mean ddim")):
        with pytest.raises(UserError, match=sentence):
            solver(word)


def test_the_table_and_its_page(cli, tmp_path, monkeypatch):
    few = {"DDIM": bd.solvers.DDIM(), "DDPM": bd.solvers.DDPM(), "Langevin": bd.solvers.AnnealedLangevin()}
    monkeypatch.setattr(audit, "registered", lambda: few)
    status, out, _ = cli("solvers", "--page", tmp_path / "page.md")
    ddim, ddpm, langevin = (line.split() for line in out.splitlines()[1:4])
    assert status == 0 and [ddim[0], ddpm[0], langevin[0]] == list(few)
    # order 1 as stated and measured; a strong order for the one that draws along a path
    assert ddim[1] == ddpm[1] == "1" and 0.9 < float(ddim[2].rstrip(",")) < 1.1 and ddim[4] == "-"
    assert 0.9 < float(ddpm[4]) < 1.1 and langevin[1:4] == ["-"] * 3
    page = (tmp_path / "page.md").read_text()
    assert "| DDPM |" in page and "strong" in page and "<svg" in (tmp_path / "page.svg").read_text()


@pytest.mark.parametrize("name", [".", "table.svg"])
def test_a_page_that_cannot_be_one_is_refused_before_measuring(refused, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert "name a file, such as solvers.md" in refused("solvers", "--page", name)
