"""The page of a diagnosis: the verdict, the figures of every question on every rung, and the pictures that tell."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from backdrift.data import grid_png
from backdrift.files import write_text
from backdrift.noise import Noise
from backdrift.posterior import flat
from backdrift.report import page
from backdrift.report.bars import Bar, bars
from backdrift.report.chart import Axis, Curve, chart
from backdrift.trust import law
from backdrift.trust.diagnose import Diagnosis, Rung, name_of, spread_of
from backdrift.trust.problem import Problem
from backdrift.trust.verdict import Verdict

BINS = 72
BLOCK = 12  # bins' heights that a column of a density over time is wide
SHOWN = 16  # pictures of each kind


def write_diagnosis(path: Path, found: Diagnosis) -> Path:
    """Write the page; returns its path."""
    parts = [*_head(found), page.heading("The questions"), _table(found)]
    parts.append(
        page.text(
            "Errors are 0 for a perfect sampler. PASS: the 95 % interval lies within the limit; FAIL: it lies "
            "beyond it, allowing for the number of questions; INCONCLUSIVE: it crosses it. Floor: what exact draws, "
            "or the exact score in the same integrator, get at the same n. To the right: the error on each rung.",
            "note",
        )
    )
    parts += _figures(found)
    if found.remedy is not None:
        name, after = found.remedy
        parts += [page.heading(f"After the remedy: {name}"), *_head(after), _table(after), *_figures(after)]
    write_text(path, page.Page(f"backdrift: the lens on {type(found.sampler).__name__}", parts).html())
    return path


def _head(found: Diagnosis) -> list[str]:
    style = "alarm" if found.verdict is Verdict.FAIL else "lead"
    failed = [f for f in found.findings if f.verdict is found.verdict]
    words = "; ".join(f"{f.name}: {f.reason}" for f in failed[:4]) if found.verdict is not Verdict.PASS else ""
    facts = [
        ("sampler", name_of(found.sampler)),
        ("denoiser", "exact" if found.learned is None else "trained, with the exact one as the rung before"),
        ("measurement", f"{type(found.problem.measurement).__name__} {tuple(found.problem.measurement.shape)}"),
        ("prior", f"{type(found.problem.prior).__name__} of {len(found.problem.prior.log_weights)}"),
        ("draws, steps, seed", f"{found.n}, {found.steps}, {found.seed}"),
    ]
    return [page.text(f"{found.verdict}. {words}".strip(), style), page.facts(facts)]


def _table(found: Diagnosis) -> str:
    rungs = list(found.rungs)
    rows = []
    for f in found.findings:
        if f.value is None:
            rows.append((f.name, str(f.verdict), "", "", "", *[""] * len(rungs), f.reason))
            continue
        own = (f"{f.rungs[name]:+.3f}" if name in f.rungs else "" for name in rungs)
        floor = "" if f.floor is None else f"{f.floor:+.3f}"
        figure = f"{f.value:+.3f} [{f.low:.3f}, {f.high:.3f}]"
        rows.append((f.name, str(f.verdict), figure, floor, f"{f.limit:g}", *own, f.reason))
    return page.table(("question", "verdict", "error", "floor", "limit", *rungs, ""), rows)


def _figures(found: Diagnosis) -> list[str]:
    rung, problem = found.judged, found.problem
    if rung.effects and "weights of the modes" in rung.effects:
        modes = [Bar(m.name, m.exact, m.found, m.low, m.high) for m in found.modes]
        parts = [page.heading("Where the draws are"), page.row([bars("Weights of the modes", modes), _kinds(found)])]
    else:
        parts = []
    if rung.watch is not None:
        parts += [page.heading("On the way"), page.row(_densities(rung, found.rungs["exact"], problem))]
        parts += [page.row([_spread(found), _early(found), _budget(found)])]
    if len(problem.prior.event_shape) == 3 and problem.prior.event_shape[0] in (1, 3):
        parts += [page.heading("Draws"), page.row(_pictures(found))]
    return parts


def _kinds(found: Diagnosis) -> str:
    """The draws by whether they fit y and lie on the prior."""
    names = {
        "prior-mode hallucination": "on the prior, contradict y",
        "likelihood-mode hallucination": "fit y, off the prior",
        "off both": "neither",
    }
    rows = []
    for name, words in names.items():
        effect, exact = found.judged.effects[name], found.reference
        true = {
            "prior-mode hallucination": exact.contradicts & ~exact.off,
            "likelihood-mode hallucination": ~exact.contradicts & exact.off,
            "off both": exact.contradicts & exact.off,
        }[name]
        share = float(true.double().mean())
        value, half = share + float(effect.values[0]), 1.96 * float(effect.errors[0])
        rows.append(Bar(words, share, value, max(0.0, value - half), min(1.0, value + half)))
    return bars("Draws that exact ones would not be", rows)


def _densities(rung: Rung, exact: Rung, problem: Problem) -> list[str]:
    """The law over time along the line on which draws differ most: exact, found, and the difference."""
    pooled = torch.cat([exact.draws.lines, rung.draws.lines])
    line = int(pooled.var(0).argmax())
    columns = []
    for t, lines in zip(rung.watch.times, rung.watch.lines, strict=True):
        alpha, sigma = (float(v) for v in problem.process.schedule.alpha_sigma(t))
        xt = problem.process.corrupt(exact.pictures, t, Noise.of(-6, len(exact.pictures)))
        # states in the units of unit variance, so that every schedule fits one frame
        scale = (alpha**2 + sigma**2) ** 0.5
        true = flat(xt).double() @ problem.directions[:, line]
        columns.append((true / scale, lines[:, line] / scale))
    columns.append((exact.draws.lines[:, line], rung.draws.lines[:, line]))
    everything = torch.cat([c for pair in columns for c in pair])
    low, high = (float(everything.quantile(q)) for q in (0.002, 0.998))
    true, made = (torch.stack([_density(pair[i], low, high) for pair in columns], 1) for i in (0, 1))
    top = float(true.amax().clamp_min(1e-9))
    # roots, so that a tenth of the density is still seen
    gap = (made - true) / (made - true).abs().amax().clamp_min(top / 10)
    gap = gap.sign() * gap.abs().sqrt()
    # white where equal, red where the sampler puts too much, blue where too little
    colours = torch.stack([1 - 2 * (-gap).clamp_min(0), 1 - 2 * gap.abs(), 1 - 2 * gap.clamp_min(0)])
    words = "across: noise on the left, data on the right"
    shades = [(1 - 2 * (d / top).clamp(0, 1) ** 0.5).expand(3, -1, -1) for d in (true, made)]
    figures = zip((*shades, colours), ("exact", "sampler", "difference: red too much, blue too little"), strict=True)
    return [page.picture(_png(image), f"{name} ({words})") for image, name in figures]


def _density(values: Tensor, low: float, high: float) -> Tensor:
    """(BINS,) shares, from high to low."""
    return torch.histc(values.clamp(low, high), BINS, low, high).flip(0) / len(values)


def _png(image: Tensor) -> bytes:
    """(3, BINS, J) as a PNG with wide columns."""
    return grid_png(image.float().repeat_interleave(BLOCK, 2).repeat_interleave(2, 1)[None], upscale=2)


def _spread(found: Diagnosis) -> str:
    curves = []
    for name, rung in found.rungs.items():
        spread = spread_of(rung)
        if spread is None:
            continue
        for view, ratio in spread.ratio.items():
            if view == "whole" or rung is found.judged:
                curves.append(Curve(f"{name}, {view}", spread.times, ratio.tolist(), dashed=rung is not found.judged))
    own = spread_of(found.judged)
    for side, ends in (("low", own.low), ("high", own.high)):
        curves.append(Curve(f"95 % {side}", own.times, ends["whole"].tolist(), dashed=True))
    return chart("Spread over the exact one, 1 where right", curves, Axis("t"), Axis("ratio", log=True))


def _early(found: Diagnosis) -> str:
    curves = []
    for name, rung in found.rungs.items():
        if rung.watch is not None:
            _, curve = law.early_stopping(rung.watch, rung.draws, found.reference, found.limits.distance)
            curves.append(Curve(name, rung.watch.times, curve.tolist(), dashed=rung is not found.judged))
    return chart("Distance of the predictions, if stopped at t", curves, Axis("t"), Axis("Wasserstein-1", log=True))


def _budget(found: Diagnosis) -> str:
    curves = []
    for name, rung in found.rungs.items():
        if rung.watch is not None and rung.watch.budget:
            times, nats, _ = zip(*rung.watch.budget, strict=True)
            curves.append(Curve(name, times, nats, dashed=rung is not found.judged))
    return chart("Divergence added per step, nats", curves, Axis("t"), Axis("nats", log=True))


def _pictures(found: Diagnosis) -> list[str]:
    rung, exact = found.judged, found.rungs["exact"]
    order = rung.draws.fit.argsort()
    sets = [(exact.pictures[:SHOWN], "exact draws"), (rung.pictures[:SHOWN], "the sampler's")]
    sets.append((rung.pictures[order[:SHOWN]], "the sampler's that fit y least"))
    return [page.picture(grid_png(x.float(), columns=8), words) for x, words in sets]
