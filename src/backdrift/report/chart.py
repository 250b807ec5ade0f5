"""Line charts as inline SVG: a few curves, labelled axes, a legend, nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#1b6ca8", "#d1495b", "#3c896d", "#edae49", "#6a4c93", "#5c5c5c", "#00a6a6", "#a05195")
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 72, 130, 26, 42


@dataclass(frozen=True)
class Curve:
    """One line: a name for the legend, points, and whether it is drawn dashed."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """label: under or beside the axis. log: a logarithmic scale; values that are not positive are left out."""

    label: str
    log: bool = False

    def place(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def shows(self, value: float | None) -> bool:
        return value is not None and math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self, low: float, high: float) -> list[float]:
        """Round values, in the units of the data, between the placed ends."""
        if self.log and high - low >= 0.7:
            leads = (1,) if high - low >= 2 else (1, 2, 5)
            marks = [m * 10.0**k for k in range(math.floor(low), math.ceil(high)) for m in leads]
            return [mark for mark in marks if low <= math.log10(mark) <= high]
        if self.log:
            low, high = 10**low, 10**high
        raw = (high - low) / 5 or 1.0
        power = 10 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
        return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1) if k or not self.log]


def chart(title: str, curves: Sequence[Curve], x: Axis, y: Axis) -> str:
    """An SVG element; curves are cut where a value is missing or not finite."""
    shown = [
        [(x.place(a), y.place(b)) if x.shows(a) and y.shows(b) else None for a, b in zip(c.x, c.y, strict=True)]
        for c in curves
    ]
    points = [p for line in shown for p in line if p]
    if not points:
        return ""
    (x0, x1), (y0, y1) = (_range([p[i] for p in points]) for i in (0, 1))

    def across(value: float) -> float:
        return LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text x="{LEFT}" y="16" class="title">{html.escape(title)}</text>',
    ]
    for value in x.ticks(x0, x1):
        a = across(x.place(value))
        parts.append(f'<line x1="{a:.1f}" y1="{TOP}" x2="{a:.1f}" y2="{HEIGHT - BOTTOM}" class="grid"/>')
        parts.append(f'<text x="{a:.1f}" y="{HEIGHT - BOTTOM + 14}" class="tick" text-anchor="middle">{value:g}</text>')
    for value in y.ticks(y0, y1):
        b = up(y.place(value))
        parts.append(f'<line x1="{LEFT}" y1="{b:.1f}" x2="{WIDTH - RIGHT}" y2="{b:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{b + 3:.1f}" class="tick" text-anchor="end">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" class="tick" text-anchor="middle">{html.escape(x.label)}</text>')
    centre = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="13" y="{centre}" class="tick" text-anchor="middle" transform="rotate(-90 13 {centre})">'
        f"{html.escape(y.label)}</text>"
    )
    for i, (curve, line) in enumerate(zip(curves, shown, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        for run in _runs(line):
            path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in run)
            if len(run) == 1:
                a, b = run[0]
                parts.append(f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="2.5" fill="{colour}"/>')
            else:
                parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        row = TOP + 12 + 14 * i
        parts.append(
            f'<line x1="{WIDTH - 162}" y1="{row - 4}" x2="{WIDTH - 144}" y2="{row - 4}" stroke="{colour}" '
            f'stroke-width="2"{dash}/><text x="{WIDTH - 139}" y="{row}" class="tick">{html.escape(curve.name)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _runs(line: list[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """The stretches without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in line:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def standalone(svg: str) -> str:
    """A chart as the text of an .svg file of its own, with its style inside."""
    style = ".title{font:600 13px sans-serif}.tick{font:11px sans-serif;fill:#444}.grid{stroke:#e6e6e6}"
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return svg.replace("<svg ", head, 1).replace(">", f"><style>{style}</style>{background}", 1) + "\n"
