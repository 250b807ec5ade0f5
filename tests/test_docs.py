"""The pages say what the code does: their blocks run, and print what stands below them."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("execute", ROOT / "docs" / "execute.py")
docs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(docs)


def test_blocks_run_in_order_and_their_output_is_put_below():
    page = "a\n\n```python\nx = 2\n```\n\nb\n\n```python\nprint(x + 1)\n```\n\n```text\nold\n```\n\nc\n"
    assert docs.execute(page) == page.replace("old", "3")


def test_a_page_without_its_output_gets_it():
    assert docs.execute("```python\nprint('hi')\n```\n") == "```python\nprint('hi')\n```\n\n```text\nhi\n```\n"


def test_only_numbers_may_differ_between_machines():
    assert docs.without_numbers("loss 0.31 at 2e-5") == docs.without_numbers("loss  12 at 7")
    assert docs.without_numbers("loss 0.31") != docs.without_numbers("cost 0.31")


def test_the_readme_prints_what_it_says():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    start = page.index("## Samplers")
    section = page[start : page.index("\n## ", start + 1)]
    assert docs.execute(section) == section


def test_links_between_the_pages_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
def test_the_tutorial_is_up_to_date(monkeypatch):
    path = ROOT / "docs" / "tutorial-noise-to-digit.md"
    monkeypatch.chdir(path.parent)
    page = path.read_text(encoding="utf-8")
    assert docs.without_numbers(docs.execute(page)) == docs.without_numbers(page)


@pytest.mark.parametrize("name", ["inverse.md", "klip.md"])
def test_a_page_with_code_is_up_to_date(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert docs.without_numbers(docs.execute(page)) == docs.without_numbers(page)


@pytest.mark.slow
def test_the_page_on_trust_is_up_to_date():
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    assert docs.without_numbers(docs.execute(page)) == docs.without_numbers(page)
