"""The page of a run that follows pictures: what it was given, what it made of it, and how well that follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from backdrift.data import Pictures, grid_png
from backdrift.data.derived import Derived, KnownPixels, derive
from backdrift.denoiser import Denoiser
from backdrift.edit.control import fill
from backdrift.evaluate.following import MEASURES, following, mean_and_half
from backdrift.files import write_json, write_text
from backdrift.noise import Noise
from backdrift.report import page
from backdrift.report.facts import command, facts
from backdrift.report.run import curves
from backdrift.run import Run
from backdrift.sample import sample

SHOWN, VERSIONS, STEPS, MEASURED = 12, 4, 15, 256


def sheet(denoiser: Denoiser, derived: Sequence[Derived], pictures: Pictures) -> Tensor:
    """Rows of `SHOWN`: held-out pictures, what is taken from them, and `VERSIONS` rows of samples that follow it."""
    x0, cond = _given(denoiser, derived, pictures, SHOWN)
    rows = [x0, *(_seen(value, x0) for value in cond.values())]
    rows += [sample(denoiser, index=range(len(x0)), cond=cond, steps=STEPS, seed=seed) for seed in range(VERSIONS)]
    return torch.cat(rows)


def filled(denoiser: Denoiser, pictures: Pictures) -> Tensor:
    """Rows of `SHOWN`: held-out pictures, their known part, and `VERSIONS` rows with the rest made."""
    x0, cond = _given(denoiser, (KnownPixels(),), pictures, SHOWN)
    rows = [x0, torch.where(cond["mask"] > 0, x0, 0.0)]
    rows += [fill(denoiser, x0, cond["mask"], steps=STEPS, seed=seed) for seed in range(VERSIONS)]
    return torch.cat(rows)


def follow(
    denoiser: Denoiser, derived: Sequence[Derived], pictures: Pictures, count: int = MEASURED, seed: int = 0
) -> list[dict]:
    """How well samples follow the conditions of held-out pictures, and two floors, as rows for a table.

    without: samples of the base alone, from the same noise. others: the real pictures, each against its neighbour's.
    """
    x0, cond = _given(denoiser, derived, pictures, count)
    made = sample(denoiser, index=range(len(x0)), cond=cond, steps=STEPS, seed=seed)
    free = sample(denoiser, index=range(len(x0)), steps=STEPS, seed=seed)
    rows = []
    for each in (one for one in derived if type(one) in MEASURES):
        name, words, _ = MEASURES[type(each)]
        sets = {"value": made, "without": free, "others": x0.roll(1, 0)}
        found = {key: mean_and_half(following(each, cond[name], pics)) for key, pics in sets.items()}
        rows.append({"measure": words, "n": len(x0), **found})
    return rows


def write_control_report(run: Run, denoiser: Denoiser, pictures: Pictures) -> tuple[Path, list[str]]:
    """Measure, write `control.json` and `report.html`; returns the page's path and the figures in words."""
    derived = run.options().derived
    rows = follow(denoiser, derived, pictures)
    write_json(run.folder / "control.json", {"rows": rows})
    header = ("measure", "samples", "without the condition", "other real pictures", "n")
    cells = [
        (row["measure"], *(f"{row[k][0]:.3f} ± {row[k][1]:.3f}" for k in ("value", "without", "others")), str(row["n"]))
        for row in rows
    ]
    png = grid_png(sheet(denoiser, derived, pictures), columns=SHOWN)
    caption = f"held-out pictures; what is taken from them; below, samples that follow it ({STEPS} evaluations)"
    parts = [
        page.heading("How well samples follow"),
        page.table(header, cells),
        page.text("Of held-out pictures; mean and 95 % interval; 1 is exactly what was given.", "note"),
        page.picture(png, caption),
    ]
    lines = [f"{row['measure']}  {row['value'][0]:.3f}, without it {row['without'][0]:.3f}" for row in rows]
    return _write(run, "follows pictures", parts), lines


def write_inpainting_report(run: Run, denoiser: Denoiser, pictures: Pictures) -> Path:
    """Write `report.html`; returns its path."""
    png = grid_png(filled(denoiser, pictures), columns=SHOWN)
    caption = f"held-out pictures; the part that is known; below, {VERSIONS} versions of the rest ({STEPS} evaluations)"
    return _write(run, "fills pictures in", [page.heading("Pictures filled in"), page.picture(png, caption)])


def _write(run: Run, words: str, parts: list[str]) -> Path:
    parts = [
        page.facts(facts(run)),
        *parts,
        *curves(run.metrics(), "the mean square error of what the network predicts"),
        page.heading("The command that repeats this run"),
        page.code(command(run)),
    ]
    path = run.folder / "report.html"
    write_text(path, page.Page(f"backdrift: {run.folder.name}, {words}", parts).html())
    return path


def _given(denoiser: Denoiser, derived: Sequence[Derived], pictures: Pictures, count: int):
    """Held-out pictures on the model's device, and their conditions."""
    _, held_out = pictures.split()
    device = next(denoiser.parameters()).device
    x0 = held_out.tensor(torch.arange(min(count, len(held_out)))).to(device)
    return x0, derive(derived, x0, Noise.of(0, len(x0)))


def _seen(value: Tensor, x0: Tensor) -> Tensor:
    """A condition as pictures like x0."""
    return value if value.shape == x0.shape else value[:, :1].expand(x0.shape)
