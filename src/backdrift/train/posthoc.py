"""The length of the average, chosen after training: any power average from a few snapshots of two others.

The power average of exponent g at time t is the integral of the weights against the profile

    p(u) = (g + 1) u^g / t^(g + 1)   on (0, t).

The update in `ema` makes exactly this integral of weights that stay put during a step. So averages are as linear as
their profiles: if the profile of a wanted average is a combination of the profiles of snapshots, the average is the
same combination of the snapshots. The best one in the least-squares sense follows from the inner products alone,

    <p_a, p_b> = (g_a + 1) (g_b + 1) / (g_a + g_b + 1) * min(t_a, t_b)^(g_a + g_b + 1) / (t_a^(g_a + 1) t_b^(g_b + 1)),

without the weights having been seen, and so does how much of the profile is left over. Karras et al. 2024,
arXiv:2312.02696, section 3.2 and appendix C.

A snapshot is a file in the run's `averages/`, which appears whole or not at all. Its numbers are float16, whose
rounding (2^-12 of a weight) is about what 8 snapshots leave unmatched; that of bfloat16 is eight times more
(docs/measured.md). A run keeps count x widths x 2 bytes per weight, 32 by default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from backdrift.config import to_config
from backdrift.denoiser import Network
from backdrift.errors import UserError
from backdrift.run import Run, load_network, read_model
from backdrift.train.checkpoint import checksum, files, on_cpu, step_of, write
from backdrift.train.ema import Power, averageable
from backdrift.train.networks import NetChoice

LEFT_OVER = 0.1  # the part of a profile beyond which an average is refused


@dataclass(frozen=True)
class Recipe:
    """An average as a sum over snapshots. shares: float64 (T, W), for T times and W widths.

    left_over: the norm of the part of the wanted profile that no combination reaches, relative to the profile's.
    """

    shares: Tensor
    left_over: float


def recipe(times: Sequence[int], widths: Sequence[float], width: float) -> Recipe:
    """How to make the power average of `width` at the last of `times` from those of `widths` at all of `times`."""
    grid = [(float(time), Power(each).exponent) for time in times for each in widths]
    wanted = (float(max(times)), Power(width).exponent)
    t, g = torch.tensor([*grid, wanted], dtype=torch.float64).T
    products = _products(t, g)
    inside, across = products[:-1, :-1], products[:-1, -1]
    shares = torch.linalg.lstsq(inside, across[:, None], rcond=1e-14, driver="gelsd").solution[:, 0]
    difference = torch.cat([shares, torch.tensor([-1.0], dtype=torch.float64)])
    left = (difference @ products @ difference).clamp_min(0) / products[-1, -1]
    return Recipe(shares.view(len(times), len(widths)), float(left.sqrt()))


def _products(t: Tensor, g: Tensor) -> Tensor:
    """The inner products of the profiles with ends t (K,) and exponents g (K,), (K, K)."""
    first = torch.minimum(t[:, None], t)
    g, h, t, s = g[:, None], g, t[:, None], t
    # every power is of a ratio of at most 1, so that none overflows
    return (g + 1) * (h + 1) / (g + h + 1) * (first / t) ** g * (first / s) ** h * first / (t * s)


def save(folder: Path, step: int, averages: Mapping[float, Mapping[str, Tensor]]) -> Path:
    """Write the averages after `step`, by width and name, to `folder`; snapshots of later steps go."""
    tensors = on_cpu({f"{width:g}/{name}": _half(x) for width, part in averages.items() for name, x in part.items()})
    header = {"step": step, "widths": list(averages), "checksum": checksum(tensors)}
    path = folder / f"step-{step:07d}.safetensors"
    write(path, tensors, {"snapshot": json.dumps(header)})
    for later in files(folder):
        if step_of(later) > step:
            later.unlink(missing_ok=True)
    return path


def _half(x: Tensor) -> Tensor:
    """As float16, or as it is where a number is too large for that."""
    half = x.detach().to(torch.float16)
    return half if bool(half.isfinite().all()) else x.detach()


def _load(path: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["snapshot"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = checksum(tensors) == header["checksum"]
    except (SafetensorError, OSError, ValueError, KeyError):
        whole = False
    if not whole:
        raise UserError(f"The snapshot {path} is damaged; remove it, and the others are used.")
    return header, tensors


def average(run: Run | str | Path, width: float, net: NetChoice | nn.Module | None = None) -> tuple[Network, Recipe]:
    """The network of `run` with the power average of `width` at its last snapshot, and how that was made.

    net: for a run of someone's own network, that network again.

    Raises `UserError` where the run kept no snapshots or a damaged one, for a width that they do not reach, and as
    `load_network` does.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    paths = files(run.averages)
    network = load_network(run.folder, net=net)
    if not paths:
        raise UserError(
            f"{run.folder} kept no snapshots of averages, so there is only the average that it was made with."
        )
    times = [step_of(path) for path in paths]
    widths = _load(paths[-1])[0]["widths"]
    found = recipe(times, widths, width)
    if found.left_over > LEFT_OVER:
        raise UserError(
            f"The average of width {width:g} cannot be made from the {len(times)} snapshots of {run.folder}: "
            f"{found.left_over:.0%} of it is left over; choose one nearer to {' or '.join(f'{w:g}' for w in widths)}."
        )
    total = averageable(network.net)
    for tensor in total.values():
        tensor.zero_()
    for path, row in zip(paths, found.shares.tolist(), strict=True):
        _, tensors = _load(path)
        for each, share in zip(widths, row, strict=True):
            for name, tensor in total.items():
                tensor.add_(tensors[f"{each:g}/{name}"].to(tensor.dtype), alpha=share)
    return network, found


def write_average(run: Run | str | Path, width: float, out: Run | str | Path, command: Sequence[str] = (), net=None):
    """Write the `average` of `width` as a run folder of its own, which loads like any other; returns the `Recipe`.

    command: recorded in the config, as what repeats it.
    """
    run, out = (x if isinstance(x, Run) else Run(Path(x)) for x in (run, out))
    if out.begun():
        raise UserError(f"{out.folder} holds a run already; give another folder for the average of width {width:g}.")
    network, found = average(run, width, net)
    config = run.config()
    made_by = {"average_of": str(run.folder), "command": list(command)}
    config = {**config, **made_by, "options": {**config["options"], "average": to_config(Power(width))}}
    out.begin(config)
    out.save_model(network.net, config, read_model(run.model_path)[1]["step"])
    return found
