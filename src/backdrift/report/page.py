"""The page itself: headings, text, tables, pictures and charts, joined into one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em;margin-bottom:.2em} h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}
p.lead{font-weight:600} p.alarm{font-weight:700;color:#fff;background:#b3202c;padding:.5em .8em;border-radius:4px}
p.note{color:#555;font-size:.92em;max-width:75ch}
pre{background:#f5f5f5;padding:.7em;border-radius:4px;white-space:pre-wrap;overflow-wrap:anywhere}
table{border-collapse:collapse;font-variant-numeric:tabular-nums} td,th{padding:.25em .8em;text-align:right}
td:first-child,th:first-child,.facts td{text-align:left} tr:nth-child(even){background:#f7f7f7}
th{border-bottom:1px solid #999}
.row{display:flex;flex-wrap:wrap;gap:1.2em} .row figure{max-width:370px}
figure{margin:0} figcaption{color:#555;font-size:.9em}
img{image-rendering:pixelated;max-width:100%;border:1px solid #ddd} svg{width:540px;max-width:100%}
svg .title{font:600 13px system-ui} svg .tick{font:11px system-ui;fill:#444} svg .grid{stroke:#e6e6e6}
"""


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def text(words: str, style: str = "") -> str:
    """A paragraph; style is "lead", "alarm", "note" or nothing."""
    return f'<p class="{style}">{html.escape(words)}</p>'


def code(words: str) -> str:
    return f"<pre>{html.escape(words)}</pre>"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, both to the left."""
    body = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="facts">{body}</table>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def picture(png: bytes, caption: str) -> str:
    """A PNG, embedded."""
    data = base64.b64encode(png).decode("ascii")
    words = html.escape(caption)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'


def row(items: Sequence[str]) -> str:
    """Figures side by side where the window is wide enough."""
    return f'<div class="row">{"".join(items)}</div>'


@dataclass(frozen=True)
class Page:
    """title: of the window and the page. parts: HTML made by this module's functions and `chart.chart`."""

    title: str
    parts: Sequence[str]

    def html(self) -> str:
        title = html.escape(self.title)
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
            f"<h1>{title}</h1>{''.join(self.parts)}</html>\n"
        )
