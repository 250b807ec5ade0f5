"""Training and sampling end to end, beside the loop that diffusers' documentation shows.

    PYTHONPATH=src PEERS/bin/python bench/training.py [--steps 60] [--rounds 3] [--threads 1]

Data: 2,048 colour pictures of 16x16 in memory, batch 32. Network: diffusers' UNet2DModel of 1.11 million parameters,
and two of our U-Nets, one of the same operations (1.33 million) and one of the same parameters (1.14 million). Training
is everything between two steps: loader, corruption, network, clipping, AdamW, learning rate, averaging of the weights
(diffusers: a TensorDataset, the fastest loader there is, DDPMScheduler, cosine schedule with warm-up, EMAModel).
Sampling is 64 pictures by 50 steps of DDIM (the loop of DDIMPipeline). Either side in float32 and in bf16 (autocast in
training, bf16 weights in sampling).

Every measurement is a process of its own, so that its peak memory is its own; sides alternate. Times are CPU time
divided by threads; medians. Prints JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from functools import partial

import torch

SIDE, COUNT, BATCH, SAMPLES, STEPS = 16, 2048, 32, 64, 50
SKIPPED = 10  # training steps before the clock starts
OURS = {
    "ours, equal operations": {"multipliers": (1, 2, 2), "attention": (2,)},
    "ours, equal parameters": {"multipliers": (1, 1, 1, 2), "attention": (3,)},
}
CASES = [(side, precision) for precision in ("fp32", "bf16") for side in (*OURS, "diffusers")]


def pixels():
    """Pictures of one soft spot each, uint8 (COUNT, 3, SIDE, SIDE)."""
    g = torch.Generator().manual_seed(0)
    centre, colour = torch.rand(COUNT, 2, 1, 1, generator=g) * SIDE, torch.rand(COUNT, 3, 1, 1, generator=g)
    axis = torch.arange(SIDE)
    square = (axis[:, None] - centre[:, :1]) ** 2 + (axis - centre[:, 1:]) ** 2
    return (255 * colour * (-square / 20).exp()).to(torch.uint8)


def ours(shape: dict, precision: str, steps: int):
    """CPU seconds of a training step, peak memory, and CPU seconds of sampling."""
    import backdrift as bd
    from backdrift.data.pictures import Pictures
    from backdrift.model import Model
    from backdrift.train.loop import train
    from backdrift.train.networks import UNetChoice

    names = [str(i) for i in range(COUNT)]
    pictures = Pictures(pixels(), None, (), names, {"kind": "made", "fingerprint": "made"})
    net = UNetChoice(width=32, blocks=2, **shape)
    options = bd.TrainOptions(steps=steps, batch=BATCH, net=net, precision=precision)
    marks = {}
    done = train(pictures, options, on_progress=lambda p: marks.setdefault(p.step, time.process_time()))
    seconds = (marks[steps] - marks[SKIPPED]) / (steps - SKIPPED)
    memory = peak()
    model = Model(done.network)
    if precision == "bf16":
        model.denoiser.net.bfloat16()

    return seconds, memory, sampling(lambda n, k: model.sample(n, solver=bd.solvers.DDIM(), steps=k))


def diffusers(precision: str, steps: int):
    """The same of diffusers' loop."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    net = UNet2DModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )
    data = torch.utils.data.TensorDataset(pixels().float() / 127.5 - 1)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, drop_last=True)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    rate = get_cosine_schedule_with_warmup(optimiser, num_warmup_steps=10, num_training_steps=steps)
    average = EMAModel(net.parameters())
    step, began = 0, 0.0
    while step < steps:
        for (clean,) in loader:
            noise = torch.randn_like(clean)
            t = torch.randint(0, 1000, (len(clean),))
            noisy = scheduler.add_noise(clean, noise, t)
            with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
                loss = torch.nn.functional.mse_loss(net(noisy, t, return_dict=False)[0].float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            rate.step()
            optimiser.zero_grad()
            average.step(net.parameters())
            step += 1
            if step == SKIPPED:
                began = time.process_time()
            if step == steps:
                break
    seconds = (time.process_time() - began) / (steps - SKIPPED)
    memory = peak()
    average.copy_to(net.parameters())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    net, ddim = net.to(dtype).eval(), DDIMScheduler(num_train_timesteps=1000)

    @torch.no_grad()
    def draw(n, k):
        ddim.set_timesteps(k)
        x = torch.randn(n, 3, SIDE, SIDE, dtype=dtype)
        for t in ddim.timesteps:
            x = ddim.step(net(x, t).sample, t, x).prev_sample
        return x

    return seconds, memory, sampling(draw)


def sampling(draw) -> float:
    """CPU seconds of draw(SAMPLES, STEPS)."""
    draw(SAMPLES, 3)
    start = time.process_time()
    draw(SAMPLES, STEPS)
    return time.process_time() - start


def peak() -> float:
    """The largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # the child's words: side, precision
    options = options.parse_args()
    if options.case:
        warnings.filterwarnings("ignore")
        torch.set_num_threads(options.threads)
        side, precision = options.case
        run = partial(ours, OURS[side]) if side in OURS else diffusers
        seconds, memory, drawing = run(precision, options.steps)
        pace = BATCH * options.threads / seconds
        print(json.dumps({"pictures_per_second": pace, "mb": memory, "sampling": drawing / options.threads}))
        return
    found = {case: [] for case in CASES}
    for _ in range(options.rounds):
        for case in CASES:
            child = [sys.executable, __file__, "--case", *case, "--steps", str(options.steps)]
            child += ["--threads", str(options.threads)]
            made = subprocess.run(child, check=True, capture_output=True, text=True)
            found[case].append(json.loads(made.stdout.splitlines()[-1]))
            print(*case, found[case][-1], file=sys.stderr)
    rows = [
        {"side": side, "precision": precision} | {k: round(statistics.median(r[k] for r in runs), 2) for k in runs[0]}
        for (side, precision), runs in found.items()
    ]
    print(json.dumps({"torch": torch.__version__, "threads": options.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
