"""Command-line words to a dataclass of options, by tyro, with mistakes said in one sentence."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
from typing import TypeVar

import tyro

from backdrift.errors import UserError

T = TypeVar("T")
_CONFIG = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
_PLAINLY = (  # tyro's words, and ours
    (r"^Missing value for argument '(.*)'\. Expected 1 values", r"\1 needs a value"),
    (r"^Missing value for argument '(.*)'\. Expected (\d+) values", r"\1 needs \2 values"),
    (r"^Missing from backdrift \w+: (\S+) (.*?)\.? \(required\)", r"\1 is missing (\2)"),
    (r"^Error parsing (\S+): no type matching \{None\}\|(.*) could be .* from \['(.*)'\]", r"\1 takes \2, not '\3'"),
    (r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 takes a whole number, not \2"),
    (r"^Error parsing (\S+): could not .* to float: (.*)", r"\1 takes a number, not \2"),
    (r"^Error parsing (\S+): .* arguments:? \['(.*)'\].*", r"\1 cannot be '\2'"),
    (r"^invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", r"\2 cannot be '\1'; choose \3"),
    ("takes INT,", "takes a whole number,"),
    ("takes FLOAT,", "takes a number,"),
    (r"takes \{\[INT.*\]\},", "takes whole numbers,"),
)


def parse(options: type[T], verb: str, arguments: list[str]) -> T:
    """An `options` from `arguments`. Prints the help and exits for --help; raises `UserError` for mistakes."""
    if any(word in ("-h", "--help") for word in arguments):
        tyro.cli(options, args=["--help"], prog=f"backdrift {verb}", config=_CONFIG)
    words = io.StringIO()
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
        try:
            found, unknown = tyro.cli(
                options, args=arguments, prog=f"backdrift {verb}", config=_CONFIG, return_unknown_args=True
            )
        except SystemExit:
            found, unknown = None, []
    see = f"see backdrift {verb} --help"
    if found is None or unknown:
        flags = _flags(options)
        for word in unknown or arguments:
            flag = word.partition("=")[0].replace("_", "-")
            if re.match("--?[a-z]", flag) and flag not in flags:
                raise UserError(f"backdrift {verb} has no option {word}{_like(flag, flags)}; {see}.")
    if unknown:
        raise UserError(f"backdrift {verb} cannot use {unknown[0]!r}; {see}.")
    if found is None:
        raise UserError(f"{_sentence(words.getvalue())}; {see}.")
    return found


def _flags(options: type) -> list[str]:
    """The long flags that tyro made of `options`, read from its own help."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(options, args=["--help"], prog="", config=_CONFIG)
    return sorted(set(re.findall(r"--[a-z0-9][a-z0-9.-]*", text.getvalue())))


def _like(word: str, flags: list[str]) -> str:
    """The flag that looks most like `word`, whole or after its last dot (--size for --pictures.size), as a question."""
    names = {flag.rpartition(".")[2].lstrip("-"): flag for flag in flags} | {flag.lstrip("-"): flag for flag in flags}
    close = difflib.get_close_matches(word.lstrip("-"), names, 1, 0.5)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def _sentence(box: str) -> str:
    """What the first paragraph of tyro's error box says: its title, a line, the paragraph, then a line or nothing."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    blocks = re.split(r"(?m)^(?:╭.*╮|[│ ]*[─-]*[│ ]*)$", plain)
    first = [block for block in blocks if block.strip()][1:2]
    said = " ".join("".join(first).replace("│", " ").split()).rstrip(".")
    said = said.replace("'None', ", "").replace(", 'None'", "")
    for pattern, words in _PLAINLY:
        said = re.sub(pattern, words, said)
    return said or "the options could not be read"


def say(words: str) -> None:
    """A line of output, at once."""
    print(words, flush=True)


def notice(words: str) -> None:
    """A remark, on standard error."""
    print(f"backdrift: {words}", file=sys.stderr, flush=True)
