"""The page of a reconstruction: what was seen, what was made of it, and how far that can be believed."""

from __future__ import annotations

import torch
from torch import Tensor

from backdrift.data import grid_png
from backdrift.evaluate.fidelity import psnr, ssim
from backdrift.inverse.measurement import LinearMeasurement
from backdrift.inverse.reconstruction import Reconstruction
from backdrift.report import page

SHOWN = 16


def figures(made: Reconstruction, truth: Tensor | None) -> list[tuple[str, str]]:
    """Names and values of the table; truth: (*event) or None."""
    rows = [("draws", str(len(made.samples))), ("mean of the pixels' standard deviation", f"{made.std.mean():.4f}")]
    fit = made.consistency()
    if fit is not None:
        rows.append(("misfit over noise, averaged over draws (1 is right)", f"{fit:.3f}"))
    if truth is None:
        return rows
    inside, nominal = made.covered(truth)
    sides = inside.float().mean()
    mean, one, draws = made.mean[None], truth[None], made.samples
    # of their mean squared error: one draw that is the truth itself has an infinite one
    near = psnr(draws.flatten(1)[None], one.flatten(1).expand(1, len(draws), -1))[0]
    alike = ssim(draws, one.expand_as(draws)).mean()
    return [
        *rows,
        (f"pixels whose interval covers the truth ({nominal:.0%} is right)", f"{sides:.1%}"),
        ("squared error of a draw over that of the mean (2 is right)", f"{made.ratio(truth):.2f}"),
        ("mean error over standard deviation", f"{_error_over_std(made, truth):.2f}"),
        ("PSNR of the mean, of a draw (dB)", f"{psnr(mean, one)[0]:.2f}, {near:.2f}"),
        ("SSIM of the mean, of a draw", f"{ssim(mean, one)[0]:.3f}, {alike:.3f}"),
    ]


def _error_over_std(made: Reconstruction, truth: Tensor) -> float:
    """The root mean square error of the mean over the root mean variance: 1 for a calibrated spread."""
    n = len(made.samples)
    return float(((made.mean - truth).square().mean() / (made.std.square().mean() * (1 + 1 / n))).sqrt())


def strip(made: Reconstruction, truth: Tensor | None) -> tuple[Tensor, list[str]]:
    """Pictures side by side in [-1, 1], and their names."""
    parts = [("mean", made.mean), ("standard deviation", _bright(made.std))]
    if isinstance(made.measurement, LinearMeasurement):
        parts.insert(0, ("what y alone says", made.measurement.pinv(made.y[None].to(made.samples))[0]))
    if truth is not None:
        parts.insert(0, ("truth", truth))
        parts.append(("error of the mean", _bright((made.mean - truth).abs())))
        parts.append(("not covered", 1 - 2 * made.covered(truth)[0].to(truth)))
    parts += [(f"draw {k}", draw) for k, draw in enumerate(made.samples[:4])]
    names, pictures = zip(*parts, strict=True)
    return torch.stack([picture.float().cpu() for picture in pictures]), list(names)


def _bright(x: Tensor) -> Tensor:
    """Numbers from 0 up, the largest as white."""
    return 2 * x / x.max().clamp_min(1e-12) - 1


def reconstruction_page(made: Reconstruction, truth: Tensor | None, title: str, words: str, after: list[str]) -> str:
    """HTML. words: what was asked. after: lines on what to do next."""
    pictures, names = strip(made, truth)
    parts = [
        page.text(words, "lead"),
        page.picture(grid_png(pictures, columns=len(pictures)), ", ".join(names)),
        page.table(("", ""), figures(made, truth)),
        page.heading("Draws"),
        page.picture(grid_png(made.samples[:SHOWN].cpu(), columns=8), f"{min(SHOWN, len(made.samples))} draws"),
        page.text(
            "PSNR and SSIM say how near the mean is to the truth. Whether the spread can be believed is said by the "
            "rows above them.",
            "note",
        ),
        *(page.text(line, "note") for line in after),
    ]
    return page.Page(title, parts).html()
