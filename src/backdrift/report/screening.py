"""The page of a screening: each measurement's score among those of usual objects, and where in the picture it is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from backdrift.data import grid_png
from backdrift.files import write_json, write_text
from backdrift.inverse.measurement import LinearMeasurement, Measurement
from backdrift.report import page
from backdrift.trust.screen import Screening

SHOWN = 16  # measurements drawn on the page


def write_screening(path: Path, found: Screening, measurement: Measurement, names: list[str], command: str) -> Path:
    """Write the page `path` and its figures as .json beside it; returns the path of the figures. names: (N,)."""
    figures = path.with_suffix(".json")
    usual = len(found.null["klip"].scores)
    write_json(figures, {"command": command, "usual": usual, "measurements": rows(found, names)})
    parts = [
        page.text(
            f"KLIP is the divergence of the posterior from the prior, in nats. p: how rare a score is among those of "
            f"{usual} measurements of usual objects, counting both sides; the smallest "
            f"possible is {2 / (usual + 1):.3f}. Of many measurements some are rare by chance.",
            "note",
        ),
        page.table(*_table(found, names)),
        page.heading("Where"),
    ]
    for first in range(0, min(len(names), SHOWN), 4):
        few = range(first, min(first + 4, len(names)))
        parts.append(page.row([_pictures(found, measurement, k, names[k]) for k in few]))
    parts.append(
        page.text(
            "From the left: the posterior's mean; its standard deviation; KLIP's map, red where the measurement is "
            "brighter than the prior expects and blue where darker; the map in standard deviations of the null's "
            "logarithm; for a linear measurement, what of the mean lies in its null space and so comes from the prior "
            "alone. A change that lies there alone moves no score.",
            "note",
        )
    )
    parts += [page.heading("The command that repeats this"), page.code(command)]
    write_text(path, page.Page("KLIP: what the prior has not seen", parts).html())
    return figures


def rows(found: Screening, names: list[str]) -> list[dict]:
    """The figures of each measurement."""
    family = found.null["klip"].family(found.klip.map)
    p = {name: found.p(name) for name in found.scores}
    return [
        {
            "name": names[k],
            "klip": float(found.klip.total[k]),
            "stderr": float(found.klip.stderr[k]),
            "p": {name: float(values[k]) for name, values in p.items()},
            "p_of_the_most_unusual_pixel": float(family[k]),
        }
        for k in range(len(names))
    ]


def _table(found: Screening, names: list[str]) -> tuple[list[str], list[list[str]]]:
    others = [name for name in found.scores if name != "klip"]
    header = ["", "KLIP", "s.e.", "p", "p of the most unusual pixel", *(f"p of {name}" for name in others)]
    body = [
        [row["name"], f"{row['klip']:.1f}", f"{row['stderr']:.1f}", f"{row['p']['klip']:.3f}"]
        + [f"{row['p_of_the_most_unusual_pixel']:.3f}"]
        + [f"{row['p'][name]:.3f}" for name in others]
        for row in rows(found, names)
    ]
    return header, body


def _pictures(found: Screening, measurement: Measurement, k: int, name: str) -> str:
    mean, std = found.klip.mean[k].float(), found.klip.std[k].float()
    shown = [coloured(mean), coloured(std / std.max().clamp_min(1e-12) * 2 - 1)]
    shown += [heat(found.klip.signed[k]), heat(found.unusual()[k].clamp_min(0))]
    if isinstance(measurement, LinearMeasurement):
        shown.append(heat(mean - measurement.seen(mean[None])[0]))
    return page.picture(
        grid_png(torch.stack(shown), columns=len(shown)), f"{name}: p = {float(found.p('klip')[k]):.3f}"
    )


def coloured(x: Tensor) -> Tensor:
    """(C, H, W) as (3, H, W)."""
    return x.expand(3, *x.shape[1:]).float() if len(x) == 1 else x.float()


def heat(x: Tensor) -> Tensor:
    """A map (C, H, W), summed over channels, as (3, H, W): white at 0, red above, blue below; the largest is full."""
    x = x.sum(0).float()
    x = x / x.abs().max().clamp_min(1e-12)
    up, down = x.clamp_min(0).sqrt(), (-x).clamp_min(0).sqrt()
    return torch.stack([1 - down, 1 - up - down, 1 - up]) * 2 - 1
