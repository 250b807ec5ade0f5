"""The variance of the bound on a run's held-out pictures, by the schedule in whose time the noise levels are drawn.

    python bench/learned_schedule.py RUN [--draws 64] [--fits 3] [--finest 0.00784]

One estimate is the bound's denoising term from one uniform time and one noise, in nats of a picture (Kingma et al.
2021, Eq. 17). Its variance is taken within each picture, over `draws` estimates, and averaged; the interval of a ratio
is the bootstrap over pictures. Fits use the training part. The last figures are standard errors of the estimate that
`backdrift score` makes, with one time from each of 100 strata and paired noises, on 48 of the pictures. Prints JSON.
"""

import argparse
import json
import math

import torch

import backdrift as bd
from backdrift.denoiser import Network
from backdrift.likelihood import Continuous, bound
from backdrift.objective import Bound, denoising, fit_schedule
from backdrift.run import Run


def even(network: Network, first: float, pieces: int = 64):
    """The run's schedule at a pace even in log(1 + v snr), where the error of Gaussian data is."""
    schedule, v = network.process.schedule, network.sigma_data**2
    ends = (v * schedule.logsnr(torch.tensor([first, 1.0]).double()).exp()).log1p()
    clock = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, pieces + 1, dtype=torch.float64))
    places = schedule.time((clock.expm1() / v).log())
    times = torch.linspace(1e-3, 1, pieces + 1, dtype=torch.float64)
    return bd.schedule.Learned(schedule, (0.0, *times.tolist()), (0.0, first, *places[1:-1].tolist(), 1.0))


def estimates(network: Network, schedule, first: float, x0: torch.Tensor, draws: int) -> torch.Tensor:
    """(N, draws) estimates with t uniform on the times of `schedule` that the bound takes."""
    process = bd.process.Gaussian(schedule)
    there = Network(network.net, process, network.target, network.event_shape, network.sigma_data).eval()
    low = float(schedule.time(network.process.schedule.logsnr(first)))
    scale = (1 - low) * x0[0].numel()
    rows = []
    for draw in range(draws):
        noise = bd.Noise.of(0, len(x0)).at("draw", draw)
        t = low + (1 - low) * noise.at("time").uniform(torch.zeros(len(x0), dtype=torch.float64))
        found = denoising(there, x0, t, noise, weight=lambda t: scale * Bound()(schedule, network.target, t))
        rows.append(found.double())
    return torch.stack(rows, 1)


def interval(a: torch.Tensor, b: torch.Tensor, draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of mean(a) / mean(b), paired."""
    index = torch.randint(len(a), (draws, len(a)), generator=torch.Generator().manual_seed(0))
    return (a[index].mean(1) / b[index].mean(1)).quantile(torch.tensor([0.025, 0.975]).double()).tolist()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--fits", type=int, default=3)
    parser.add_argument("--finest", type=float, default=2 / 255)
    options = parser.parse_args()

    network = bd.load(options.run).denoiser
    train, held_out = bd.data.load(Run(options.run).config()["data"]["source"]).split()
    first, x0 = float(network.process.schedule.time(-2 * math.log(options.finest))), held_out.tensor()
    clocks = {"cosine": bd.schedule.Cosine(), "angle": bd.schedule.Trig(), "log(1 + v snr)": even(network, first)}
    for seed in range(options.fits):
        clocks[f"learned, seed {seed}"] = fit_schedule(network, train.tensor(), first=first, seed=seed)
    found = {name: estimates(network, clock, first, x0, options.draws) for name, clock in clocks.items()}
    within = {name: values.var(1) for name, values in found.items()}
    for name, values in found.items():
        row = {
            "clock": name,
            "nats": float(values.mean()),
            "std of one estimate": float(within[name].mean().sqrt()),
            "variance over cosine's": float(within[name].mean() / within["cosine"].mean()),
            "interval": interval(within[name], within["cosine"]),
            "over log(1 + v snr)'s": float(within[name].mean() / within["log(1 + v snr)"].mean()),
            "interval of that": interval(within[name], within["log(1 + v snr)"]),
        }
        print(json.dumps(row), flush=True)
    for name, clock in clocks.items():
        ladder, noise = Continuous(100, first, clock), bd.Noise.of(1, 48)
        error = bound(network, x0[:48], ladder, noise=noise, draws=4).error
        row = {"clock": name, "root mean square of the error of 4 x 100 strata": float(error.square().mean().sqrt())}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
