"""The report: one file that shows everything, asks nothing of the network, and names the command that repeats it."""

import base64
import io
import itertools
import json
import math
import re
import shlex
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

import backdrift as bd
from backdrift.report import page
from backdrift.report.chart import Axis, Curve, chart
from backdrift.report.facts import facts, figures
from backdrift.report.run import _by_angle, write_report
from backdrift.run import Run

VOID = {"meta", "img", "line", "circle", "polyline", "rect", "path"}


class Reader(HTMLParser):
    """Tags and attributes, and whether every tag that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def report(digits_run):
    return Reader((digits_run / "report.html").read_text(encoding="utf-8"))


def test_one_file_that_loads_nothing(report):
    tags = {tag for tag, _ in report.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in report.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "href") or value.startswith("data:image/png;base64,"), (tag, name)
            assert "http" not in value or name == "xmlns", (tag, name)
    assert not re.search(r"url\(|@import", "".join(report.words))


def test_pictures_are_embedded_and_whole(report):
    figures = [attributes for tag, attributes in report.tags if tag == "img"]
    captions = [attributes["alt"] for attributes in figures]
    assert len(figures) == 4 and "64 real pictures" in captions
    assert any("guidance 2" in words for words in captions) and any(words.startswith("above: ") for words in captions)
    for attributes in figures:
        data = base64.b64decode(attributes["src"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) >= 64


def test_it_says_what_the_run_is_and_how_to_repeat_it(report, digits_run):
    said = "".join(report.words)
    for words in ("1623 for training, 174 held out, 8x8x1", "8 of 8 steps of 8 pictures, fp32", "UNet (width 16"):
        assert words in said
    command = next(words for words in report.words if words.startswith("backdrift train"))
    assert shlex.split(command) == Run(digits_run).config()["command"]
    assert shlex.split(command)[:4] == ["backdrift", "train", "--run", str(digits_run)]


def test_evaluation_and_alarm(digits_run, tmp_path):
    run = Run(shutil.copytree(digits_run, tmp_path / "run"))
    row = {"name": "FD", "value": 1.25, "low": 1.0, "high": 1.5, "floor": 0.5, "n": 40, "reference": 174}
    found = {
        "rows": [{**row, "better": "lower", "note": "a <note>"}],
        "floor": "held out",
        "memorisation": {"ratio": 0.85, "low": 0.8, "high": 0.91, "pairs": [[3, 7, 0.1], [0, 9, 0.2]]},
        "guidance": 2.0,
        "n": 40,
        "steps": 2,
        "seed": 0,
        "plain_labels": [0] * 40,
    }
    (run.folder / "evaluation.json").write_text(json.dumps(found))
    model, digits = bd.load(run.folder), bd.data.digits()
    text = write_report(run, model, digits).read_text(encoding="utf-8")
    page_read = Reader(text)
    first = text[text.index("</h1>") :]
    assert first.startswith('</h1><p class="alarm">MEMORISED: ') and "0.850 [0.800, 0.910]" in first
    said = "".join(page_read.words)
    assert "1 to 1.5" in said and "a <note>." in said and len([1 for tag, _ in page_read.tags if tag == "img"]) == 5
    assert figures(run) == [("FD", "1.25 (floor 0.5)")]
    found["memorisation"]["ratio"] = 0.95
    (run.folder / "evaluation.json").write_text(json.dumps(found))
    text = write_report(run, model, digits).read_text(encoding="utf-8")
    assert "MEMORISED" not in text and "Not memorised: " in text


def test_names_cannot_break_the_page(digits_run, tmp_path):
    run = Run(shutil.copytree(digits_run, tmp_path / "<b>run & co"))
    config = run.config()
    config["data"]["classes"][0] = "<script>alert(1)</script>"
    run.config_path.write_text(json.dumps(config))
    text = write_report(run, bd.load(run.folder), bd.data.digits()).read_text(encoding="utf-8")
    assert "<script" not in text and "<b>" not in text and "<script>alert(1)</script>" in "".join(Reader(text).words)
    assert dict(facts(run))["labels"].startswith("10: <script>")


def test_loss_is_drawn_against_the_noise_angle(digits_run):
    records = [
        {"step": 10 * k, "validation_loss": 1.0, "validation_by_noise": [1.0 + k, None, *[2.0 + k] * 6]}
        for k in range(1, 6)
    ]
    first, middle, end, trained = _by_angle([*records, {"step": 50, "loss_by_noise": [0.5] * 8}])
    assert [curve.name for curve in (first, middle, end)] == ["held out, 10", "held out, 30", "held out, 50"]
    assert end.x[0] == 5.625 and end.x[-1] == 84.375 and end.y == [6.0, None, *[7.0] * 6]
    assert trained.dashed and trained.y == [0.5] * 8 and _by_angle([]) == []
    assert 'aria-label="Loss by noise angle"' in (digits_run / "report.html").read_text(encoding="utf-8")


def lines(svg):
    """The points of each polyline, in pixels."""
    found = re.findall(r'<polyline points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]


def test_chart_places_points_in_proportion():
    (line,) = lines(chart("c", [Curve("a", [0, 1, 4], [0.0, 1.0, 4.0])], Axis("x"), Axis("y")))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert math.isclose((x1 - x0) / (x2 - x0), 0.25, abs_tol=1e-3)
    assert math.isclose((y1 - y0) / (y2 - y0), 0.25, abs_tol=1e-3) and y2 < y0  # up is more
    (line,) = lines(chart("c", [Curve("a", [0, 1, 2], [0.01, 0.1, 1.0])], Axis("x"), Axis("y", log=True)))
    assert math.isclose((line[1][1] - line[0][1]) / (line[2][1] - line[0][1]), 0.5, abs_tol=1e-3)


def test_chart_leaves_gaps_where_there_is_no_value():
    curve = Curve("<a>", list(range(6)), [1.0, 2.0, None, math.nan, 3.0, 4.0])
    svg = chart("<title>", [curve], Axis("x"), Axis("y"))
    assert [len(line) for line in lines(svg)] == [2, 2] and "<a>" not in svg and "&lt;title&gt;" in svg
    Reader(svg)
    assert len(lines(chart("c", [Curve("a", [0, 1, 2], [1.0, -1.0, 1.0])], Axis("x"), Axis("y", log=True)))) == 0
    assert chart("c", [Curve("a", [0, 1], [None, None])], Axis("x"), Axis("y")) == ""


@pytest.mark.parametrize("low, high", [(0, 1), (3, 4), (0, 7e-5), (-3, 1200), (5, 5.0001)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = Axis("y").ticks(low, high)
    assert 2 <= len(ticks) <= 11 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    steps = {round((b - a) / (high - low), 9) for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1


@pytest.mark.parametrize("low, high", [(0.01, 10.0), (0.2, 0.9), (0.5, 5.0), (1e-3, 2e-3), (1.0, 1.01)])
def test_logarithmic_ticks(low, high):
    ticks = Axis("y", log=True).ticks(math.log10(low), math.log10(high))
    assert len(ticks) >= 2 and all(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks)


def test_page_escapes():
    assert page.text("a < b", "note") == '<p class="note">a &lt; b</p>'
    assert "<td>&lt;x&gt;</td>" in page.table(["h"], [["<x>"]])
