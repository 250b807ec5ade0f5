"""What the lens costs: one sampler on 1,000 atoms with 1,000 draws, all rungs and questions.

    python bench/lens.py [--side 8] [--n 1000] [--atoms 1000] [--steps 100]

The atoms are scikit-learn's digits, enlarged to --side; the measurement averages squares of 2 by 2 pixels. Prints JSON:
seconds by the clock and of processor time, and the verdict.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F

import backdrift as bd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("side", 8), ("n", 1000), ("atoms", 1000), ("steps", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--noise", type=float, default=0.5)
    options = parser.parse_args()
    pictures = bd.data.digits().tensor()
    if options.side != 8:
        pictures = F.interpolate(pictures, size=options.side, mode="bilinear").clamp(-1, 1)
    prior = bd.exact.Atoms(pictures[: options.atoms])
    # the same posterior at any size: noise per average grows with the number of averages
    noise = options.noise * options.side / 8
    measurement = bd.inverse.Downsample(2, prior.event_shape, noise)
    y = measurement.draw(pictures[-1:], bd.Noise.of(0, 1))[0]
    for sampler in (bd.inverse.PiGDM(prior_std=0.75),):
        wall, cpu = time.perf_counter(), time.process_time()
        found = bd.diagnose(sampler, prior, measurement, y, n=options.n, steps=options.steps)
        row = {
            "sampler": type(sampler).__name__,
            "shape": list(prior.event_shape),
            "atoms": len(prior.points),
            "draws": options.n,
            "steps": options.steps,
            "seconds": round(time.perf_counter() - wall, 1),
            "processor_seconds": round(time.process_time() - cpu, 1),
            "verdict": str(found.verdict),
        }
        print(json.dumps(row), flush=True)
        for line in found.lines():
            print(line, flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
