"""Throughput of the networks beside diffusers' of the same size, and beside a plain matrix product.

    PYTHONPATH=src PEERS/bin/python bench/networks.py [--size 1M] [--threads 1] [--rounds 5] [--compile]

PEERS is an environment with torch and diffusers; without diffusers only our networks run. For each size, 1, 6 and 35
million parameters: a peer, our network at the peer's operations, and for U-Nets ours at the peer's parameters, more of
which lie at low resolution. For each, pictures per second of a forward pass and of a training step (forward, backward,
fused Adam on float32 master weights), in float32 and in bf16 weights, in torch's default memory format and with weights
and input channels-last, and, with --compile, through `torch.compile`. Every network is the better for some of these, so
only the best mode of each is compared. The rate of a 1024^3 product is measured in the same rounds.

Times are CPU time divided by threads, so that other work on the machine disturbs them less than wall time; medians over
rounds that interleave all cases. Prints JSON, then a table.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backdrift.nets import DiT, UNet, parameters_count

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRODUCT = 1024
PYRAMID = {"multipliers": (1, 2, 2), "attention": (2,)}


@dataclass(frozen=True)
class Subject:
    """A network to time. call(net, x, noise) -> x's shape, with noise (B,) in [0, 1]."""

    family: str
    name: str
    make: Callable[[], nn.Module]
    call: Callable


def unet(family, channels, **choices):
    word = f"UNet {choices['width']} {choices['multipliers']} x {choices['blocks']}"
    return Subject(family, word, partial(UNet, channels, **choices), lambda net, x, noise: net(x, noise))


def dit(family, channels, width, depth, rotary=True):
    make = partial(DiT, channels, width=width, depth=depth, rotary=rotary, registers=0)  # the peer has neither
    name = f"DiT {width} x {depth}" + ", no rotation" * (not rotary)
    return Subject(family, name, make, lambda net, x, noise: net(x, noise))


def unet2d(family, channels, side, widths, attention, blocks):
    def make():
        from diffusers import UNet2DModel

        down = [("Attn" if i in attention else "") + "DownBlock2D" for i in range(len(widths))]
        up = [("Attn" if i in attention else "") + "UpBlock2D" for i in reversed(range(len(widths)))]
        return UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=blocks,
            block_out_channels=widths,
            down_block_types=down,
            up_block_types=up,
            attention_head_dim=32,
        )

    # its embedding of the time takes steps from 0 to 999
    return Subject(family, f"UNet2DModel {widths} x {blocks}", make, lambda net, x, t: net(x, t * 999).sample)


def dit2d(family, channels, side, width, depth, head_width):
    def make():
        from diffusers import DiTTransformer2DModel

        return DiTTransformer2DModel(
            num_attention_heads=width // head_width,
            attention_head_dim=head_width,
            in_channels=channels,
            out_channels=channels,
            num_layers=depth,
            sample_size=side,
            patch_size=2,
            num_embeds_ada_norm=10,
        )

    def call(net, x, t):
        return net(x, (t * 999).long(), torch.zeros(len(x), dtype=torch.long)).sample

    return Subject(family, f"DiTTransformer2DModel {width} x {depth}", make, call)


def subjects(size: str) -> tuple[tuple[int, int, int], int, list[Subject]]:
    """The input's shape, the batch, and what is timed at this size. Families: unet, transformer."""
    u, t = "unet", "transformer"
    if size == "1M":
        event = (3, 32, 32)
        return event, 32, [
            unet2d(u, 3, 32, (32, 64, 64), (2,), 1),
            unet(u, 3, width=32, blocks=2, **PYRAMID),
            unet(u, 3, width=32, multipliers=(1, 1, 1, 2), attention=(3,), blocks=2),
            dit2d(t, 3, 32, 128, 4, 64),
            dit(t, 3, 128, 4),
            dit(t, 3, 128, 4, rotary=False),
        ]  # fmt: skip
    if size == "6M":
        return (1, 28, 28), 16, [
            unet2d(u, 1, 28, (64, 128, 128), (2,), 2),
            unet(u, 1, width=64, blocks=3, **PYRAMID),
            unet(u, 1, width=64, multipliers=(1, 1, 1, 2), attention=(3,), blocks=3),
            dit2d(t, 1, 28, 256, 5, 64),
            dit(t, 1, 256, 5),
            dit(t, 1, 256, 5, rotary=False),
        ]  # fmt: skip
    return (3, 32, 32), 8, [
        unet2d(u, 3, 32, (128, 256, 256, 256), (1,), 2),
        unet(u, 3, width=160, blocks=2, **PYRAMID),
        unet(u, 3, width=160, multipliers=(1, 1, 2, 2), attention=(3,), blocks=2),
        dit2d(t, 3, 32, 384, 13, 64),
        dit(t, 3, 384, 13),
        dit(t, 3, 384, 13, rotary=False),
    ]  # fmt: skip


class Case:
    """One network in one precision, memory format and compilation, with a batch to run it on."""

    def __init__(self, subject, event, batch, dtype, last: bool, compiled: bool):
        torch.manual_seed(0)
        self.master = list(subject.make().parameters())
        net = subject.make().to(dtype)
        self.x = torch.randn(batch, *event).to(dtype)
        if last:
            net, self.x = net.to(memory_format=torch.channels_last), self.x.to(memory_format=torch.channels_last)
        self.copies = list(net.parameters())
        self.optimiser = torch.optim.Adam(self.master, lr=1e-4, fused=True)
        self.noise = torch.rand(batch).to(torch.float32)
        self.net = torch.compile(net) if compiled else net
        self.call = subject.call

    def forward(self):
        with torch.no_grad():
            self.call(self.net, self.x, self.noise)

    def train(self):
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.master)
        for copy in self.copies:
            copy.grad = None
        (self.call(self.net, self.x, self.noise) - self.x).square().mean().backward()
        for master, copy in zip(self.master, self.copies, strict=True):
            master.grad = None if copy.grad is None else copy.grad.to(master.dtype)
        self.optimiser.step()


def gflop(subject, event) -> float:
    """Multiplications and additions of one forward pass of one picture, in 1e9."""
    net = subject.make()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.call(net, torch.randn(1, *event), torch.rand(1))
    return counter.get_total_flops() / 1e9


def cpu_time(function, threads):
    start = time.process_time()
    function()
    return (time.process_time() - start) / threads


def measure(size, formats, compiled, rounds, threads):
    """The rows of one size, and the rate of the product in each precision."""
    event, batch, found = subjects(size)
    if find_spec("diffusers") is None:
        found = [subject for subject in found if "Model" not in subject.name]
    work = {}
    for precision, dtype in PRECISIONS.items():
        a, b = torch.randn(2, PRODUCT, PRODUCT).to(dtype)
        work["product", precision, "", "product"] = lambda a=a, b=b: a @ b
        for subject in found:
            for last in formats:
                for faster in compiled:
                    mode = "channels-last" * last + " compiled" * faster or "default"
                    case = Case(subject, event, batch, dtype, last, faster)
                    work[subject, precision, mode, "forward"] = case.forward
                    work[subject, precision, mode, "train"] = case.train
    for function in work.values():
        function()  # warm up, compile
    seconds = {key: [] for key in work}
    for _ in range(rounds):
        for key, function in work.items():
            seconds[key].append(cpu_time(function, threads))
    median = {key: statistics.median(values) for key, values in seconds.items()}
    product = {p: 2 * PRODUCT**3 / 1e9 / median["product", p, "", "product"] for p in PRECISIONS}
    rows = []
    for subject in found:
        operations, parameters = gflop(subject, event), parameters_count(subject.make())
        for precision in PRECISIONS:
            for what in ("forward", "train"):
                times = {m: s for (k, p, m, w), s in median.items() if (k, p, w) == (subject, precision, what)}
                mode = min(times, key=times.get)
                pace = batch / times[mode]
                rate = (3 if what == "train" else 1) * operations * pace
                rows.append(
                    {
                        "size": size,
                        "family": subject.family,
                        "network": subject.name,
                        "million_parameters": round(parameters / 1e6, 2),
                        "gflop": round(operations, 3),
                        "precision": precision,
                        "what": what,
                        "mode": mode,
                        "pictures_per_second": round(pace, 1),
                        "of_product_rate": round(rate / product[precision], 2),
                        "all_modes": {m: round(batch / s, 1) for m, s in times.items()},
                    }
                )
    return rows, {p: round(rate) for p, rate in product.items()}


def table(rows):
    """A line per network: pictures per second (share of the product's rate), best mode, per precision and task."""
    lines = ["| network | M | GFLOP | fp32 forward | fp32 train | bf16 forward | bf16 train |", "|---|" + "--:|" * 6]
    for name in dict.fromkeys((row["size"], row["network"]) for row in rows):
        own = [row for row in rows if (row["size"], row["network"]) == name]
        cells = [f"{r['pictures_per_second']:g} ({r['of_product_rate']:g})" for r in own]
        head = f"| {name[0]} {name[1]} | {own[0]['million_parameters']} | {own[0]['gflop']} | "
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--size", nargs="+", default=["1M", "6M", "35M"], choices=["1M", "6M", "35M"])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--compile", action="store_true", help="also through torch.compile: minutes per network")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="diffusers")
    rows, product = [], {}
    for size in options.size:
        compiled = (False, True) if options.compile else (False,)
        found, product[size] = measure(size, (False, True), compiled, options.rounds, options.threads)
        rows += found
    print(json.dumps({"torch": torch.__version__, **vars(options), "product_gflops": product, "rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
