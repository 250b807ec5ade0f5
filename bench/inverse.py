"""Posterior samplers by cost and beside deepinv's: python bench/inverse.py prints JSON.

cost: the time of a step over that of an unconditional one, on the library's U-Net with random weights, pictures of
32 x 32 in batches of 4, one thread; medians of interleaved repetitions. Targets: MMPS (1 iteration) and PiGDM, 2.2.

--peers adds deepinv's DPS, DDRM and DiffPIR beside ours (it must be installed): the same Gaussian prior of 16 x 16
pixels with its exact denoiser, the same operator, y and number of evaluations, everybody's default constants. The exact
posterior is known, so each is scored by the error of its mean over the posterior's standard deviation (both root mean
squares over pixels; `n` draws of the exact posterior itself get 1 / sqrt(n)), and by its standard deviation over the
posterior's, 1 for a calibrated sampler.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time

import torch

import backdrift as bd
from backdrift import inverse
from backdrift.exact import Gaussian
from backdrift.inverse.sampler import begin
from backdrift.nets.unet import UNet
from backdrift.sample import sample

EVENT = (1, 16, 16)


def cost(repeats: int, only: list[str] | None, steps: int = 3) -> dict[str, float]:
    """Seconds of a step over those of an unconditional one, of all rules or those that `only` names."""
    torch.manual_seed(0)
    shape, n = (1, 32, 32), 4
    net = UNet(1, width=32)
    process = bd.process.Gaussian(bd.schedule.VP())
    denoiser = bd.Network(net, process, bd.target.V(), shape).requires_grad_(False)
    measurement = inverse.Downsample(2, shape, 0.1)
    y = torch.zeros(measurement.shape)
    rules = {
        "PiGDM": inverse.PiGDM(),
        "MMPS, 1 iteration": inverse.MMPS(iterations=1),
        "MMPS, 5 iterations": inverse.MMPS(),
        "DPS": inverse.DPS(),
        "LGD, 8 draws": inverse.LGD(),
        "DDNM": inverse.DDNM(),
        "DiffPIR": inverse.DiffPIR(),
        "DDRM": inverse.DDRM(),
        "DAPS": inverse.DAPS(inner=1),
        "StepDPS": inverse.StepDPS(),
    }
    rules = {name: rule for name, rule in rules.items() if not only or name in only}
    noise = bd.Noise.of(0, n)
    x1, _ = begin(denoiser, measurement, y, n, noise)

    def plain():
        return sample(denoiser, x1, solver=bd.solvers.DDIM(eta=1.0), grid=bd.grids.Angle(), steps=steps)

    runs = {
        name: lambda rule=rule: rule(denoiser, measurement, y, n, steps=steps, noise=noise)
        for name, rule in rules.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            before = time.process_time()
            plain()
            middle = time.process_time()
            run()
            times[name].append((time.process_time() - middle) / (middle - before))
    return {name: round(statistics.median(values[1:]), 2) for name, values in times.items()}


def problem(name: str):
    """(prior, our measurement of x in [-1, 1], deepinv's physics of (x + 1) / 2)."""
    import deepinv as dinv

    field = inverse.Stationary(inverse.power_law(16, 16, std=0.4), EVENT)
    size = math.prod(EVENT)
    units = torch.eye(size, dtype=torch.float64).view(size, *EVENT)
    cov = torch.fft.ifft2(field.spectrum * torch.fft.fft2(units)).real.reshape(size, size)
    prior, noise = (
        Gaussian(torch.zeros(EVENT, dtype=torch.float64), (cov + cov.mT) / 2),
        dinv.physics.GaussianNoise(0.05),
    )
    if name == "inpainting":
        mask = (torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
        physics = dinv.physics.Inpainting(img_size=EVENT, mask=mask, noise_model=noise)
        ours = inverse.Inpaint(mask, 0.1, EVENT)
    else:
        kernel = inverse.gaussian_kernel(1.0, 2)
        physics = dinv.physics.BlurFFT(img_size=EVENT, filter=kernel.float()[None, None], noise_model=noise)
        ours = inverse.Blur(kernel, EVENT, 0.1)
    return prior, ours, physics


def peers(n: int, steps: int, only: list[str] | None) -> dict[str, dict]:
    """Scores of ours and theirs, for each problem; of those that `only` names, if it does."""
    import deepinv as dinv
    import numpy as np
    from deepinv.optim.data_fidelity import L2

    process, found = bd.process.Gaussian(bd.schedule.VP()), {}
    for name in ("inpainting", "blur"):
        prior, ours, physics = problem(name)
        denoiser = prior.denoiser(process)
        truth = prior.draw(1, seed=1)
        y = ours.draw(truth, bd.Noise.of(2, 1))[0]
        exact = prior.given(ours, y)
        mean, variance = exact.means[0].view(EVENT), exact._covariances()[0].diagonal().view(EVENT)
        theirs = bd.interop.deepinv.denoiser(denoiser)
        # in [0, 1], and for inpainting with zeros where nothing is seen
        half = (y[None] + 1) / 2
        repeated = (half if name == "blur" else ours.adjoint(half)).float().repeat(n, 1, 1, 1)
        their = {
            "deepinv DPS": lambda t=theirs: dinv.sampling.DPS(t, num_steps=steps + 1, dtype=torch.float32),
            "deepinv DDRM": lambda t=theirs: dinv.sampling.DDRM(t, sigmas=np.geomspace(50, 0.005, steps)),
            "deepinv DiffPIR": lambda t=theirs: dinv.sampling.DiffPIR(t, L2(), sigma=0.05, max_iter=steps),
        }
        our = {
            "DPS": inverse.DPS(),
            "NormDPS": inverse.NormDPS(),
            "StepDPS": inverse.StepDPS(),
            "DDRM": inverse.DDRM(),
            "DiffPIR": inverse.DiffPIR(),
            "PiGDM": inverse.PiGDM(prior_std=0.4),
            "MMPS": inverse.MMPS(),
            "exact, same solver": inverse.Exact(solver=bd.solvers.DDIM(eta=1.0)),
            "exact": inverse.Exact(),
        }
        rows = {}
        wanted = only or [*our, *their]
        for label in (label for label in our if label in wanted):
            draws = our[label](denoiser, ours, y, n, steps=steps, noise=bd.Noise.of(0, n))
            rows[label] = score(draws, mean, variance)
            print(name, label, rows[label], file=sys.stderr, flush=True)
        for label in (label for label in their if label in wanted):
            torch.manual_seed(0)
            try:
                rows[label] = score(2 * their[label]()(repeated.clone(), physics).double() - 1, mean, variance)
            except Exception as error:  # a peer's own limits are a finding, too
                rows[label] = {"fails": f"{type(error).__name__}: {error}"[:120]}
            print(name, label, rows[label], file=sys.stderr, flush=True)
        found[name] = rows
    return found


def score(draws, mean, variance) -> dict[str, float]:
    """The mean's error and the spread, over the exact posterior's."""
    error = ((draws.mean(0) - mean).square().mean() / variance.mean()).sqrt()
    spread = (draws.var(0).mean() / variance.mean()).sqrt()
    return {"error": round(float(error), 3), "spread": round(float(spread), 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {"torch": torch.__version__}
    if options.repeats:
        result["cost"] = cost(options.repeats, options.only)
    if options.peers:
        result["peers"] = peers(options.n, options.steps, options.only)
    print(json.dumps(result, indent=1))
