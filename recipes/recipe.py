"""What every recipe does around its own choices: read the command line, train or continue, sample, evaluate, report.

A recipe's run folder holds what any run's does, so every verb of `backdrift` takes it afterwards. A recipe that was
stopped or killed continues when it is started again with the same words.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import backdrift as bd
from backdrift.evaluate import PixelPCA
from backdrift.evaluate.model import evaluate_model
from backdrift.files import write_json
from backdrift.report.run import write_report
from backdrift.run import Run
from backdrift.train.networks import DiTChoice


def parser(doc: str, run: str, *, data: bool = True) -> argparse.ArgumentParser:
    """The words that all recipes understand. run: the folder by default. data: whether pictures must be named."""
    words = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        words.add_argument("data", help="a folder of pictures or a .zip")
    words.add_argument("--run", type=Path, default=Path(run), help="the folder of the run (default %(default)s)")
    words.add_argument("--steps", type=int, help="optimiser steps, in place of the recipe's")
    words.add_argument("--device", help="cpu, cuda, ...; by default the accelerator if there is one")
    words.add_argument("--samples", type=int, default=1000, help="to evaluate with (default %(default)s)")
    words.add_argument("--evaluations", type=int, default=10, help="calls of the network per sample (default 10)")
    words.add_argument(
        "--try", dest="small", action="store_true", help="network and batch so small that any machine can try the path"
    )
    return words


def run(
    words: argparse.Namespace,
    pictures: bd.data.Pictures,
    options: bd.TrainOptions,
    further: Callable[[bd.Model], None] | None = None,
) -> None:
    """Train on `pictures` with `options` as `words` change them; then samples, evaluation and report in the folder.

    further: what the recipe measures besides, of the model.
    """
    if words.small:
        options = small(options)
    if words.steps is not None:
        options = replace(options, steps=words.steps)
    model = bd.train(pictures, options, run=words.run, device=words.device)
    folder = Run(words.run)
    label = [i % len(model.classes) for i in range(64)] if model.classes else None
    text = [pictures.texts[i % len(pictures)] for i in range(64)] if model.text is not None else None
    made = model.sample(64, label=label, text=text, steps=words.evaluations)
    bd.save_grid(made, folder.samples / "final.png")
    train = pictures.split()[0].tensor()
    found = evaluate_model(
        model,
        pictures,
        n=words.samples,
        steps=words.evaluations,
        features=[PixelPCA.fit(train, min(24, train[0].numel(), len(train) - 1))],
    )
    write_json(folder.folder / "evaluation.json", found.to_dict())
    print("\n".join(found.lines()))
    print(f"report  {write_report(folder, model, pictures)}")
    if further is not None:
        further(model)


def small(options: bd.TrainOptions) -> bd.TrainOptions:
    """The same path with a network and a batch that say nothing of the recipe's figures."""
    if isinstance(options.net, DiTChoice):
        net = replace(options.net, width=64, depth=2)
    else:
        net = replace(options.net, width=16, blocks=1, head_width=16)
    return replace(options, net=net, batch=16, parts=1)


def start(main: Callable[[], None]) -> None:
    """Call `main`; a user's mistake or Ctrl-C ends in one sentence."""
    torch.set_float32_matmul_precision("high")  # on an accelerator float32 products may use its faster units
    try:
        main()
    except bd.UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt as error:
        sys.exit(str(error) or "Interrupted.")
