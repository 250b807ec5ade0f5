"""The command line. One file per verb, no numerics; nothing heavy is imported before a verb has its options."""

from __future__ import annotations

import difflib
import importlib
import sys

from backdrift import processes
from backdrift._version import __version__
from backdrift.errors import UserError

VERBS = {
    "demo": "train on scikit-learn's digits, sample, evaluate and write a report",
    "train": "train on a folder of pictures, a .zip, a .npy/.npz, or the digits",
    "sample": "draw samples from a run, as a grid or thousands to a folder",
    "edit": "edit a picture: new versions, a part filled in, variations, another label",
    "sweep": "samples under several guidance weights: fidelity against diversity",
    "reconstruct": "a picture from measurements: draws, mean, spread, and whether to believe them",
    "klip": "what in a measurement a run has not seen: a score, p-values, a map",
    "diagnose": "whether a posterior sampler can be believed: compared with the exact posterior, question by question",
    "directions": "show what varies in the pictures of a run that is told representations",
    "tune": "optimise a sampling plan for a run at a few evaluations, and use it from then on",
    "distill": "make of a run a student that samples in one or two evaluations",
    "evaluate": "compare a run's samples, or any two sets of pictures, figure by figure",
    "score": "how probable a run finds pictures, in bits per dimension",
    "solvers": "measure every solver against exact answers",
    "average": "choose the length of a run's average after training",
    "export": "write a network and a plan as files that run without backdrift",
    "info": "what a run holds",
    "runs": "every run in a folder, with its figures",
    "compare": "runs side by side in one page, from the same seeds",
}


def main(argv: list[str] | None = None) -> None:
    """Run one verb and exit: 0 when done, 2 for a user's mistake (one sentence), 130 when interrupted."""
    sys.exit(_run(list(sys.argv[1:] if argv is None else argv)))


def _run(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"backdrift {__version__}")
        return 0
    try:
        if verb not in VERBS:
            raise UserError(f"There is no verb {verb!r}{nearest(verb, VERBS)}; backdrift --help lists them.")
        if verb != "train" and processes.count() > 1:
            raise UserError(f"torchrun is for training; start backdrift {verb} by itself.")
        importlib.import_module(f"backdrift.cli.{verb}").main(rest)
    except UserError as error:
        _tell(str(error))
        return 2
    except KeyboardInterrupt as error:
        _tell(str(error) or "interrupted.")
        return 130
    except BrokenPipeError:
        return 0
    return 0


def _tell(words: str) -> None:
    """A line on standard error, once for all processes of a job."""
    if processes.count() > 1:
        from backdrift.train.distributed import speaks

        if not speaks():
            return
    print(f"backdrift: {words}", file=sys.stderr, flush=True)


def nearest(word: str, known) -> str:
    """' (did you mean X?)' for the known word that looks most like this one, or nothing."""
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {words}" for verb, words in VERBS.items())
    return (
        f"backdrift {__version__}: diffusion models with exact answers\n\n"
        f"usage: backdrift VERB ...\n\n{verbs}\n\nbackdrift VERB --help lists a verb's options."
    )
