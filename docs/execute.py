"""Run the Python of a Markdown page and put what it prints below each block.

    python docs/execute.py docs/tutorial-noise-to-digit.md [--check]

Blocks fenced as ```python run one after the other in one process, from the page's folder; what a block prints replaces
the ```text block that follows it. --check changes nothing and fails if the code fails, or if the page would change in
anything but numbers (which differ a little between machines).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def execute(page: str) -> str:
    """The page with fresh output."""
    names: dict = {"__name__": "__tutorial__"}

    def run(match: re.Match) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(match[1], "tutorial", "exec"), names)
        output = f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""
        return f"```python\n{match[1]}```\n{output}"

    return BLOCK.sub(run, page)


def without_numbers(page: str) -> str:
    return re.sub(r"-?\d+(\.\d+)?(e[+-]\d+)?", "0", re.sub(r" +", " ", page))


def main(path: Path, check: bool) -> None:
    path = path.resolve()
    before = path.read_text(encoding="utf-8")
    os.chdir(path.parent)
    after = execute(before)
    if check and without_numbers(before) != without_numbers(after):
        sys.exit(f"{path} is out of date: run python docs/execute.py {path}")
    if not check:
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--check" in sys.argv)
