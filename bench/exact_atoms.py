"""The exact denoiser of 50,000 pictures of dimension 3,072 against the two matrix products it needs.

    python bench/exact_atoms.py [--points 50000] [--batch 64] [--repeats 7]

Prints one JSON object:
  time     medians of interleaved runs, in seconds, and their ratio; the products run whole and in the denoiser's own
           blocks, and the faster of the two is the floor
  memory   growth of the process's peak resident memory during a call (Linux), at N and N / 4 points
  error    of the posterior mean in float32 against all differences in float64, by noise level: the largest absolute
           error over coordinates and samples, the same for log p_t, and the effective number of atoms 1 / sum w^2

The pictures are made on the spot: smooth random fields with a falling spectrum in [-1, 1] at 8 bits, so that, unlike
white noise, they have neighbours at many distances.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from backdrift.exact import Atoms
from backdrift.exact.streaming import BLOCK
from backdrift.process import Gaussian
from backdrift.schedule import EDM

SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 80.0)


def pictures(count: int) -> Tensor:
    """(count, 3, 32, 32) float32."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.fft.fftfreq(32)[:, None].hypot(torch.fft.rfftfreq(32)[None]) * 32
    out = torch.empty(count, 3, 32, 32)
    for block in out.split(1000):
        white = torch.randn(block.shape, generator=generator)
        smooth = torch.fft.irfft2(torch.fft.rfft2(white) / (1 + frequency) ** 1.5, s=(32, 32))
        levels = (smooth / smooth.std() * 0.5).clamp(-1, 1)
        block.copy_((levels * 127.5 + 127.5).round() / 127.5 - 1)
    return out


def products(x: Tensor, points: Tensor, block: int) -> Tensor:
    total = torch.zeros_like(x)
    for part in points.split(block):
        total.addmm_(x @ part.T, part)
    return total


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def timing(atoms: Atoms, batch: int, threads: int, repeats: int, t: float) -> dict:
    torch.set_num_threads(threads)
    denoiser = atoms.denoiser(Gaussian(EDM()))
    xt = denoiser.draw(batch, t)
    x, points = xt.flatten(1), atoms.points.flatten(1)
    calls = {
        "denoiser": lambda: denoiser(xt, t),
        "products_whole": lambda: products(x, points, len(points)),
        "products_in_blocks": lambda: products(x, points, BLOCK),
    }
    for call in calls.values():
        call()
    runs = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            runs[name].append(seconds(call))
    medians = {name: statistics.median(values) for name, values in runs.items()}
    floor = min(medians["products_whole"], medians["products_in_blocks"])
    return {
        "threads": threads,
        "sigma": float(EDM().alpha_sigma(t)[1]),
        **medians,
        "ratio": medians["denoiser"] / floor,
    }


def peak_growth(call) -> float | None:
    """MiB by which a call raises the resident memory at its peak; None where the system does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    try:
        call()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # free memory kept by the allocator would hide the growth
        before = read("VmRSS")
        reset.write_text("5")  # Linux: the high-water mark starts again from here
        call()
        return (read("VmHWM") - before) / 1024
    except OSError:
        return None


def reference(atoms: Atoms, xt: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, log p_t, effective number of atoms) with every distance by differences in float64."""
    points = atoms.points.flatten(1)
    means, logs, counts = [], [], []
    for x in xt.flatten(1).double():
        logits = torch.cat([-(x - part.double()).square().sum(1) for part in points.split(2048)]) / (2 * sigma**2)
        weights = logits.softmax(0)
        means.append(sum(w @ part.double() for w, part in zip(weights.split(2048), points.split(2048), strict=True)))
        normaliser = torch.tensor(2 * torch.pi * sigma**2, dtype=torch.float64).log() * len(x) / 2
        logs.append(logits.logsumexp(0) - torch.tensor(len(points)).double().log() - normaliser)
        counts.append(1 / weights.square().sum())
    return torch.stack(means), torch.stack(logs), torch.stack(counts)


def errors(atoms: Atoms, batch: int) -> list[dict]:
    denoiser, rows = atoms.denoiser(Gaussian(EDM())), []
    for sigma in SIGMAS:
        t = EDM().time(-2 * torch.tensor(sigma, dtype=torch.float64).log())
        xt = denoiser.draw(batch, t, seed=1)
        mean, log_prob, count = reference(atoms, xt, sigma)
        rows.append(
            {
                "sigma": sigma,
                "effective_atoms": float(count.median()),
                "mean_error": float((denoiser(xt, t).mean.flatten(1) - mean).abs().max()),
                # a float32 answer of the size of log p_t cannot be better than its rounding
                "log_prob_relative_error": float(((denoiser.log_prob(xt, t) - log_prob) / log_prob).abs().max()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--error-samples", type=int, default=4)
    args = parser.parse_args()

    atoms = Atoms(pictures(args.points))
    result = {"points": args.points, "dimension": 3072, "batch": args.batch, "dtype": "float32"}
    times = [EDM().time(-2 * torch.tensor(sigma, dtype=torch.float64).log()) for sigma in (0.1, 3.0)]
    result["time"] = [timing(atoms, args.batch, n, args.repeats, t) for n in (1, 2) for t in times]
    result["memory_growth_mib"] = {}
    for part in (atoms, Atoms(atoms.points[: args.points // 4])):
        denoiser = part.denoiser(Gaussian(EDM()))
        xt = denoiser.draw(args.batch, 0.5)
        result["memory_growth_mib"][len(part.points)] = peak_growth(lambda d=denoiser, x=xt: d(x, 0.5))
    result["error"] = errors(atoms, args.error_samples)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
