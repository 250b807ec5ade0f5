"""`backdrift compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from backdrift.cli.parse import parse, say
from backdrift.errors import UserError


@dataclass(frozen=True)
class Compare:
    """Runs side by side in one page: what differs, samples from the same noise, figures with intervals, curves."""

    runs: Positional[tuple[Path, ...]]
    """Two or more run folders."""
    out: Path = Path("comparison.html")
    """The page to write."""
    n: int = 64
    """Samples of runs without labels; runs with labels get eight of each of up to ten."""
    steps: int = 10
    """Calls of the network per sample."""
    guidance: float = 2.0
    """For runs with labels."""
    seed: int = 0
    device: str | None = None
    net: str | None = None
    """The network's own file, for runs trained with --net."""


def main(arguments: list[str]) -> None:
    options = parse(Compare, "compare", arguments)
    if len(options.runs) < 2:
        raise UserError("A comparison needs two runs or more: backdrift compare A B.")
    if options.n < 1:
        raise UserError(f"Ask for at least one sample, not {options.n}.")
    if options.out.suffix.lower() != ".html":
        raise UserError(f"A comparison is a page; let {options.out} end in .html.")
    from backdrift.model import load
    from backdrift.report.compare import write_comparison
    from backdrift.run import Run
    from backdrift.train.networks import FileNet

    own = None if options.net is None else FileNet.of(options.net)

    def model(folder: Path):
        trained_own = isinstance(Run(folder).options().net, FileNet)
        return load(folder, options.device, own if trained_own else None)

    how = {"n": options.n, "steps": options.steps, "guidance": options.guidance, "seed": options.seed}
    say(f"page  {write_comparison(options.out, [model(folder) for folder in options.runs], **how)}")
