"""How well averages chosen after training match those tracked during it, by width, snapshots and their precision.

    python bench/averages.py --steps 240

trains a small U-Net on the digits, keeping snapshots of many widths in float32; makes each width from the snapshots
of 0.05 and 0.10 alone, as `backdrift average` does, and prints the distance to the tracked one over its norm, as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace

import torch
from torch import Tensor

from backdrift import data
from backdrift.train import posthoc
from backdrift.train.ema import Snapshots
from backdrift.train.loop import train
from backdrift.train.networks import UNetChoice
from backdrift.train.options import TrainOptions, for_pictures
from backdrift.train.training import Training

WIDTHS = (0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2)
KEPT = (0.05, 0.10)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def tracked(options: TrainOptions) -> dict[int, dict[float, Tensor]]:
    """The averages of all widths at the steps of the snapshots, all weights in one row."""
    rows: dict[int, dict[float, Tensor]] = {}
    snapshot = Training.snapshot

    def keep(training: Training):
        found = snapshot(training)
        rows[training.step] = {w: torch.cat([x.flatten().clone() for x in each.values()]) for w, each in found.items()}
        return found

    Training.snapshot = keep
    with tempfile.TemporaryDirectory() as folder:
        train(data.digits(), options, run=f"{folder}/run")
    return rows


def errors(rows: dict[int, dict[float, Tensor]], times: list[int], width: float) -> dict[str, float]:
    """The relative distance of the average made from `KEPT` at `times` to the tracked one, by precision."""
    recipe, wanted = posthoc.recipe(times, KEPT, width), rows[times[-1]][width].double()
    found = {"left_over": recipe.left_over}
    for dtype in DTYPES:
        snapshots = torch.stack([torch.stack([rows[time][each] for each in KEPT]) for time in times])
        made = torch.einsum("tw,twd->d", recipe.shares, snapshots.to(dtype).double())
        found[str(dtype).removeprefix("torch.")] = float((made - wanted).norm() / wanted.norm())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--count", type=int, default=16, help="snapshots; half as many are tried too")
    steps, count = (vars(parser.parse_args())[name] for name in ("steps", "count"))
    options = replace(
        for_pictures(data.digits()),
        steps=steps,
        batch=64,
        net=UNetChoice(width=16, multipliers=(1, 2), blocks=1, attention=(1,)),
        snapshots=Snapshots(count, WIDTHS),
        validate_every=0,
        checkpoint_every=0,
        precision="fp32",
    )
    rows = tracked(options)
    table = {}
    for fewer in (count // 2, count):
        times = sorted(Snapshots(fewer).steps(steps))
        table[fewer] = {width: errors(rows, times, width) for width in WIDTHS}
    print(json.dumps({"steps": steps, "relative distance by snapshots and width": table}, indent=2))


if __name__ == "__main__":
    main()
