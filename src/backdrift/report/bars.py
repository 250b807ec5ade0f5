"""Bars in pairs as inline SVG: what should be beside what was found, with its interval."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from backdrift.report.chart import COLOURS

ROW, NAME, LENGTH, TOP = 34, 190, 320, 30


@dataclass(frozen=True)
class Bar:
    """exact: the true share. found, low, high: the measured one with its interval. All in [0, 1]."""

    name: str
    exact: float
    found: float
    low: float
    high: float


def bars(title: str, rows: Sequence[Bar]) -> str:
    """An SVG element: for each row the exact share in grey above the found one, red where the interval misses it."""
    if not rows:
        return ""
    most = max(max(row.exact, row.high) for row in rows) or 1.0
    height = TOP + ROW * len(rows) + 6
    parts = [
        f'<svg viewBox="0 0 {NAME + LENGTH + 150} {height}" role="img" aria-label="{html.escape(title)}">',
        f'<text x="8" y="16" class="title">{html.escape(title)}</text>',
    ]
    for i, row in enumerate(rows):
        y = TOP + ROW * i
        exact, found, low, high = (LENGTH * value / most for value in (row.exact, row.found, row.low, row.high))
        colour = COLOURS[0] if row.low <= row.exact <= row.high else COLOURS[1]
        parts.append(
            f'<text x="{NAME - 8}" y="{y + 17}" class="tick" text-anchor="end">{html.escape(row.name)}</text>'
            f'<rect x="{NAME}" y="{y + 2}" width="{exact:.1f}" height="10" fill="#999"/>'
            f'<rect x="{NAME}" y="{y + 14}" width="{found:.1f}" height="10" fill="{colour}"/>'
            f'<line x1="{NAME + low:.1f}" y1="{y + 19}" x2="{NAME + high:.1f}" y2="{y + 19}" stroke="#222"/>'
            f'<text x="{NAME + max(exact, high) + 6:.1f}" y="{y + 18}" class="tick">{row.found:.3f}, '
            f"exact {row.exact:.3f}</text>"
        )
    return "".join([*parts, "</svg>"])
