"""Throughput of the networks, forward and training, against the rate of a plain matrix product on the same machine.

    python bench/networks.py [--threads 1] [--rounds 5] [--only 1M]

Prints JSON. For each size and precision: pictures per second of a forward pass and of a training step
(forward, backward, fused Adam on float32 master weights), the arithmetic they do, and that arithmetic's rate
as a fraction of the rate of a 1024^3 product measured in the same rounds. Times are CPU time divided by
threads, so other work on the machine disturbs them less than wall time; medians over rounds that interleave
all cases.
"""

import argparse
import json
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from backdrift.nets import DiT, MPUNet, UNet, parameters_count

PYRAMID = {"multipliers": (1, 2, 2), "attention": (2,)}
CASES = {  # the input of each size is the one that bench notes of other libraries use
    "UNet 1M 3x32x32": (UNet, (3, 32, 32), {"width": 32, **PYRAMID}),
    "UNet 6M 1x28x28": (UNet, (1, 28, 28), {"width": 64, **PYRAMID}),
    "MPUNet 1M 3x32x32": (MPUNet, (3, 32, 32), {"width": 32, **PYRAMID}),
    "DiT 1M 3x32x32": (DiT, (3, 32, 32), {"width": 128, "depth": 4}),
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRODUCT = 1024


class Case:
    """One network in one precision, with a batch to run it on."""

    def __init__(self, network, event, config, dtype, batch):
        torch.manual_seed(0)
        self.master = network(event[0], **config)
        self.net = network(event[0], **config).to(dtype)
        self.optimiser = torch.optim.Adam(self.master.parameters(), lr=1e-4, fused=True)
        self.x = torch.randn(batch, *event)
        self.noise = torch.rand(batch) * 1.5

    def forward(self):
        with torch.no_grad():
            self.net(self.x, self.noise)

    def train(self):
        pairs = list(zip(self.master.parameters(), self.net.parameters(), strict=True))
        with torch.no_grad():
            for master, copy in pairs:
                copy.copy_(master)
        self.net.zero_grad()
        (self.net(self.x, self.noise) - self.x).square().mean().backward()
        for master, copy in pairs:
            master.grad = copy.grad.to(master.dtype)
        self.optimiser.step()

    def flop(self):
        """Multiplications and additions of one forward pass, per picture."""
        with FlopCounterMode(display=False) as counter:
            self.forward()
        return counter.get_total_flops() / len(self.x)


def cpu_time(function, threads):
    start = time.process_time()
    function()
    return (time.process_time() - start) / threads


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--only", default="", help="cases whose name contains this")
    options = options.parse_args()
    torch.set_num_threads(options.threads)

    work = {}  # (case, precision, what) -> function
    flop, size = {}, {}
    for precision, dtype in PRECISIONS.items():
        a, b = torch.randn(2, PRODUCT, PRODUCT).to(dtype)
        work["product", precision, "product"] = lambda a=a, b=b: a @ b
        for name, (network, event, config) in CASES.items():
            if options.only not in name:
                continue
            case = Case(network, event, config, dtype, options.batch)
            work[name, precision, "forward"] = case.forward
            work[name, precision, "train"] = case.train
            flop[name], size[name] = case.flop(), parameters_count(case.net)

    for function in work.values():
        function()
    seconds = {key: [] for key in work}
    for _ in range(options.rounds):
        for key, function in work.items():
            seconds[key].append(cpu_time(function, options.threads))
    median = {key: statistics.median(values) for key, values in seconds.items()}

    peak = {p: 2 * PRODUCT**3 / median["product", p, "product"] for p in PRECISIONS}
    rows = []
    for (name, precision, what), value in median.items():
        if what != "product":
            rate = (3 if what == "train" else 1) * flop[name] * options.batch / value
            rows.append(
                {
                    "case": name,
                    "parameters": size[name],
                    "gflop_per_picture": round(flop[name] / 1e9, 3),
                    "precision": precision,
                    "what": what,
                    "pictures_per_second": round(options.batch / value, 1),
                    "fraction_of_product_rate": round(rate / peak[precision], 3),
                }
            )
    product = {p: round(r / 1e9) for p, r in peak.items()}
    print(json.dumps({"torch": torch.__version__, **vars(options), "product_gflops": product, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
