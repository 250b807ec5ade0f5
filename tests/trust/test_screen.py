"""Screening: scores against a null, and the page that shows them."""

import json
import math

import torch

import backdrift as bd
from backdrift.inverse import Exact, Linear
from backdrift.report.screening import heat, write_screening
from backdrift.trust import Reference, Renoised, screen


def smooth():
    """Smooth grey pictures of 4 x 4, of which the left half is measured."""
    place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    cov = 0.1 * torch.exp(-torch.cdist(place, place).square() / 8) + 0.005 * torch.eye(16)
    prior = bd.exact.Gaussian(torch.zeros(1, 4, 4).double(), cov)
    left = torch.arange(16).view(4, 4)[:, :2].flatten()
    return prior, Linear(torch.eye(16).double()[left], 0.1, (1, 4, 4))


def screened():
    prior, seen = smooth()
    usual, new = prior.draw(40, 1), prior.draw(3, 2)
    new[1, 0, 1, 1] += 1.5
    new[2, 0, 1, 3] += 1.5
    y = seen.draw(new, bd.Noise.of(3, 3))
    process = bd.process.Gaussian(bd.schedule.Flow())
    found = screen(
        Exact(), prior.denoiser(process), seen, y, seen.draw(usual, bd.Noise.of(4, 40)),
        Reference(prior.draw(500, 5)), 4, estimator=Renoised(8),
    )  # fmt: skip
    return seen, found


def test_what_is_seen_is_found_and_what_is_not_seen_is_not(tmp_path):
    seen, found = screened()
    usual, spot, hidden = found.p("klip").tolist()
    assert spot == 2 / 41 < min(usual, hidden)
    assert set(found.scores) == set(found.null) >= {"klip", "residual", "likelihood", "mahalanobis"}
    assert all(score.scores.shape == (3,) for score in found.scores.values())
    assert int(found.unusual()[1].flatten().argmax()) == 5
    path = tmp_path / "klip.html"
    figures = json.loads(write_screening(path, found, seen, ["a", "b", "c"], "backdrift klip").read_text())
    assert [row["name"] for row in figures["measurements"]] == ["a", "b", "c"]
    assert figures["measurements"][1]["p"]["klip"] == spot and figures["usual"] == 40
    assert math.isclose(figures["measurements"][1]["klip"], float(found.klip.total[1]))
    text = path.read_text()
    assert text.count("<img") == 3 and "backdrift klip" in text


def test_colours_of_a_map():
    red, white, blue = heat(torch.tensor([[[2.0, 0.0, -2.0]]])).unbind(-1)
    assert red.flatten().tolist() == [1, -1, -1]
    assert white.flatten().tolist() == [1, 1, 1]
    assert blue.flatten().tolist() == [-1, -1, 1]
