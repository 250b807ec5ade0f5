"""The page of a trained encoder: whether its neighbours mean the same, seen and counted, and how it learned."""

from __future__ import annotations

from pathlib import Path

import torch

from backdrift.data import Pictures, grid_png
from backdrift.evaluate.agreement import Share
from backdrift.evaluate.features import extract
from backdrift.evaluate.neighbours import neighbour_agreement
from backdrift.files import write_json, write_text
from backdrift.report import page
from backdrift.report.facts import command, facts
from backdrift.report.run import curves
from backdrift.represent import Encoder
from backdrift.run import Run

SHOWN = 8  # held-out pictures, and as many neighbours of each
ASKED = 2000  # held-out pictures whose neighbours are counted
AMONG = 20_000  # training pictures among which these are found


@torch.no_grad()
def write_encoder_report(run: Run, encoder: Encoder, pictures: Pictures) -> tuple[Path, list[str]]:
    """Writes `report.html`, and `neighbours.json` where there are labels; returns the page and the figures in words."""
    train, held_out = pictures.split()
    train = train.subset(slice(0, None, -(-len(train) // AMONG)))
    held_out = held_out.subset(slice(0, ASKED))
    device = next(encoder.parameters()).device
    queries, points = (
        (part.tensor().flatten(1), extract(lambda x: encoder(x.to(device)).cpu(), part.tensor()).float())
        for part in (held_out, train)
    )
    found = {}
    if pictures.labels is not None:
        for place, (name, cosine) in enumerate((("pixels", False), ("encoder", True))):
            found[name] = neighbour_agreement(
                queries[place], held_out.labels, points[place], train.labels, cosine=cosine
            )
        write_json(run.folder / "neighbours.json", {name: vars(share) for name, share in found.items()})
    lines = [f"nearest picture has the same label, by {name}: {in_words(share)}" for name, share in found.items()]
    near = [nearest(q[:SHOWN], p) for q, p in zip(queries, points, strict=True)]
    shown = [
        page.picture(
            grid_png(
                torch.cat([torch.cat([held_out.tensor([i]), train.tensor(row)]) for i, row in enumerate(rows)]),
                columns=SHOWN + 1,
            ),
            f"held-out pictures, and the training pictures that are nearest by {name}",
        )
        for name, rows in zip(("pixels", "encoder"), near, strict=True)
    ]
    parts = [
        *(page.text(f"{line}.", "lead") for line in lines),
        page.facts(facts(run)),
        page.heading("Neighbours"),
        page.row(shown),
        *curves(run.metrics(), "that of recognising a picture among the others of its batch, in nats"),
        page.heading("The command that repeats this run"),
        page.code(command(run)),
    ]
    path = run.folder / "report.html"
    write_text(path, page.Page(f"backdrift: {run.folder.name}, an encoder", parts).html())
    return path, lines


def in_words(share: Share) -> str:
    """In percent, with the 95 % interval."""
    low, high = share.interval
    return f"{100 * share.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}], n = {share.n}"


def nearest(queries: torch.Tensor, points: torch.Tensor) -> list[list[int]]:
    """The numbers of the `SHOWN` nearest points of each query, nearest first. Representations all have one length."""
    return torch.cdist(queries, points).topk(min(SHOWN, len(points)), dim=1, largest=False).indices.tolist()
