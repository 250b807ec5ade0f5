"""Command-line words to a dataclass of options, by tyro, with mistakes said in one sentence."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from typing import TypeVar

from backdrift.cli import nearest
from backdrift.errors import UserError

T = TypeVar("T")


def parse(options: type[T], verb: str, arguments: list[str]) -> T:
    """An `options` from `arguments`. Prints the help and exits for --help; raises `UserError` for mistakes."""
    import tyro

    config = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    if any(word in ("-h", "--help") for word in arguments):
        tyro.cli(options, args=["--help"], prog=f"backdrift {verb}", config=config)
    words = io.StringIO()
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
        try:
            found, unknown = tyro.cli(
                options, args=arguments, prog=f"backdrift {verb}", config=config, return_unknown_args=True
            )
        except SystemExit:
            found, unknown = None, []
    if unknown:
        word = next((w for w in unknown if w.startswith("-")), unknown[0])
        raise UserError(f"backdrift {verb} has no option {word}{nearest(word, _flags(options, verb))}.")
    if found is None:
        raise UserError(f"backdrift {verb}: {_sentence(words.getvalue())}; see backdrift {verb} --help.")
    return found


def _flags(options: type, verb: str) -> list[str]:
    """The long flags that tyro made of `options`, read from its own help."""
    import tyro

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(options, args=["--help"], prog=verb, config=(tyro.conf.OmitSubcommandPrefixes,))
    return sorted(set(re.findall(r"--[a-z0-9][a-z0-9.-]*", text.getvalue())))


def _sentence(box: str) -> str:
    """What tyro's error box says, without the box."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"[│╭╮╰╯─]+|-{5,}", " ", line).strip() for line in plain.splitlines()]
    titles = ("Parsing error", "Value error", "For full helptext", "Required options", "Missing")
    said = [line for line in lines if line and not line.startswith(titles)]
    return " ".join(said[:2]).rstrip(".") or "the options could not be read"


def say(words: str) -> None:
    """A line of output, at once."""
    print(words, flush=True)


def notice(words: str) -> None:
    """A remark, on standard error."""
    print(f"backdrift: {words}", file=sys.stderr, flush=True)
