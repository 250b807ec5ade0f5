"""Reconstructions side by side: python bench/gallery.py --run runs/digits prints JSON and writes a sheet of pictures.

Each sampler reconstructs the same pictures from the same measurements. Without --atoms the prior is a run's network
and the pictures are held-out ones. With --atoms PATH the prior is finite: `--count` pictures of a folder or .zip, with
their exact denoiser, so that the exact posterior stands beside the others; the pictures are drawn from it, and the
noise is raised until the posterior spreads over 10 pictures or more.

For each: the share of pixels whose interval of 19 draws covers the truth (.9 is right), the error of the mean over the
standard deviation (1), the misfit over the noise (1), and beside these PSNR of the mean and of a draw, and SSIM. On the
sheet a row shows truth, what y alone says, mean, standard deviation, error, what is not covered, four draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import backdrift as bd
from backdrift import data, inverse
from backdrift.cli.operators import operator
from backdrift.cli.reconstruct import held_out
from backdrift.evaluate.fidelity import psnr, ssim
from backdrift.inverse.reconstruction import reconstruct
from backdrift.report.reconstruction import strip


def samplers(std: float, exact: bool) -> dict:
    """By name; std: of the data."""
    found = {
        "MMPS": inverse.MMPS(),
        "PiGDM": inverse.PiGDM(prior_std=std),
        "DPS": inverse.DPS(),
        "NormDPS": inverse.NormDPS(),
        "DAPS": inverse.DAPS(prior_std=std),
        "DDRM": inverse.DDRM(),
        "DiffPIR": inverse.DiffPIR(),
        "twisted, 8": inverse.Twisted(count=8, guide=inverse.PiGDM(prior_std=std)),
    }
    return {"exact": inverse.Exact(), **found} if exact else found


def spread_out(prior, measurement_at, truth, noise: float, seed: int):
    """(measurement, y, effective number of atoms) with the least noise from `noise` up that leaves 10 atoms."""
    while True:
        measurement = measurement_at(noise)
        y = measurement.draw(truth[None], bd.Noise.of(seed, 1).at("y"))[0]
        effective = float(1 / prior.given(measurement, y).weights.square().sum())
        if effective >= 10:
            return measurement, y, effective, noise
        noise *= 1.5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--atoms", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--operators", nargs="+", default=["down:2", "radon:4"])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.1, 0.3])
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--sheet", type=Path, default=Path("gallery.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.atoms is None:
        denoiser = bd.load(options.run, "cpu").denoiser.requires_grad_(False)
        truths = [held_out(options.run, k) for k in range(options.pictures)]
        std = float(torch.stack(truths).std())
    else:
        pictures = data.pictures(options.atoms)
        chosen = torch.linspace(0, len(pictures) - 1, options.count).long()
        prior = bd.exact.Atoms(pictures.tensor(chosen))
        denoiser = prior.denoiser(bd.process.Gaussian(bd.schedule.VP()))
        truths, std = list(prior.draw(options.pictures, seed=1)), float(prior.points.std(0).mean())
    shape, rows, table = tuple(denoiser.event_shape), [], {}
    for word, noise in zip(options.operators, options.noise, strict=True):
        for name, sampler in samplers(std, options.atoms is not None).items():
            if options.only and name not in options.only:
                continue
            sums = torch.zeros(8)
            for k, truth in enumerate(truths):
                if options.atoms is None:
                    measurement = operator(word, shape, noise)
                    y, effective = measurement.draw(truth[None], bd.Noise.of(k, 1).at("y"))[0], 0.0
                else:
                    at = lambda noise, word=word: operator(word, shape, noise)  # noqa: E731
                    measurement, y, effective, _ = spread_out(prior, at, truth, noise, k)
                made = reconstruct(denoiser, sampler, measurement, y, 19, steps=options.steps, seed=k)
                one, mean = truth[None], made.mean[None]
                sums += torch.tensor(
                    [
                        made.covered(truth)[0].float().mean(),
                        (made.mean - truth).square().mean(),
                        made.std.square().mean() * (1 + 1 / 19),
                        made.consistency() or 0.0,
                        psnr(mean, one)[0],
                        psnr(made.samples.flatten(1)[None], one.flatten(1).expand(1, 19, -1))[0],
                        ssim(mean, one)[0],
                        effective,
                    ]
                )
                if k == 0:
                    rows.append(strip(made, truth)[0])
            covered, error, variance, misfit, of_mean, of_draw, alike, effective = (sums / len(truths)).tolist()
            table[f"{word} {name}"] = {
                "covered": round(covered, 3),
                "error over std": round((error / variance) ** 0.5, 2),
                "misfit": round(misfit, 2),
                "PSNR mean": round(of_mean, 2),
                "PSNR draw": round(of_draw, 2),
                "SSIM mean": round(alike, 3),
                **({"effective atoms": round(effective, 1)} if options.atoms else {}),
            }
            print(json.dumps({f"{word} {name}": table[f"{word} {name}"]}), flush=True)
    data.save_grid(torch.cat(rows), options.sheet, columns=len(rows[0]))
