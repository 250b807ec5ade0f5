"""Few-step training on a smooth mixture in two dimensions, whose flow is known: how far each method's map is from it.

    python bench/flowmaps.py [--seeds 0 1 2] [--updates 2000] [--methods paths align ...]

A small network first learns the mixture's denoiser; then every method trains a copy for the same number of updates.
Methods with a teacher have the exact one. Printed as JSON, for every method and seed: the root mean square error of the
learned end of the path against the exact flow by noise level, and the sliced Wasserstein distance of samples in 1, 2
and 4 evaluations to fresh data, over the floor, that of a second set of fresh data. Two controls must fail: the
denoiser as it is, used as a one-step generator, and consistency training whose two states have different noise.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time

import torch

import backdrift as bd
from backdrift import fewstep
from backdrift.fewstep.methods import wide
from backdrift.nets import MLP
from backdrift.noise import Noise
from backdrift.objective import Denoising
from backdrift.objective.base import Samples
from backdrift.objective.times import Angle
from backdrift.process import Gaussian
from backdrift.sample.sde import Jump

SCHEDULE = bd.schedule.Trig()
BATCH, COUNT = 256, 2048
LEVELS = (0.1, 0.3, 0.6, 0.9, 1.2, 1.5)  # noise angles at which the map is compared


def mixture() -> bd.exact.Mixture:
    """Eight round components on a circle, of unit standard deviation over all."""
    turn = torch.arange(8) * (2 * math.pi / 8)
    spread = 0.25
    radius = math.sqrt(2 * (1 - spread**2))
    means = radius * torch.stack([turn.cos(), turn.sin()], 1)
    return bd.exact.Mixture(torch.ones(8) / 8, means.float(), torch.tensor(spread**2))


class ExactNet(torch.nn.Module):
    """The target EDM_F of the exact denoiser, so that it can be a teacher."""

    told = ("toward",)

    def __init__(self, data):
        super().__init__()
        self.data = data

    def forward(self, u, w, cond=None):
        w = w.double().clamp_min(1e-4)
        found = self.data.at(u.double(), w.cos(), w.sin())
        return ((found.mean - w.cos()[:, None] * u) / w.sin()[:, None]).to(u.dtype)


class Shuffled(fewstep.EasyConsistency):
    """The control: the state at r has the noise of another sample."""

    def losses(self, network, head, samples):
        honest, calls = network.process.corrupt, []

        def corrupt(x, t, noise):
            calls.append(t)
            return honest(x, t, noise if len(calls) == 1 else noise.at("other"))

        other = copy.copy(network)
        other.process = Crooked(network.process, corrupt)
        return super().losses(other, head, samples)


class Crooked:
    """A process whose `corrupt` is another."""

    def __init__(self, process, corrupt):
        self.process, self.corrupt = process, corrupt

    def __getattr__(self, name):
        return getattr(self.process, name)


def network(net, objective) -> bd.Network:
    return objective.network(net, Gaussian(SCHEDULE), bd.target.EDM_F(1.0), (2,), 1.0, ())


def train(net, objective, times, updates: int, seed: int, data, lr: float, settles: bool) -> bd.Network:
    """The averaged network after this many updates; raises FloatingPointError where the loss is not finite."""
    model = network(net, objective)
    head = objective.head(model)
    for module in head.modules():
        if isinstance(module, fewstep.consistency.Teacher):
            module.network = bd.Network(ExactNet(data), model.process, model.target, (2,), 1.0)
    parameters = [*net.parameters(), *(p for p in head.parameters() if p.requires_grad)]
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    average, memory = copy.deepcopy(net), times.memory()
    for step in range(updates):
        done = (step + 0.5) / updates
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, done / 0.02) * ((1 + math.cos(math.pi * done)) / 2 if settles else 1)
        places = torch.arange(BATCH) + step * BATCH
        noise = Noise(seed, places)
        x0 = drawn(data, noise.at("data"))
        drawn_times = times.draw(noise.at("time"), SCHEDULE, memory)
        ones = torch.ones(BATCH, dtype=torch.float64)
        samples = Samples(x0, drawn_times.t, {}, noise.at("noise"), ones, ones, drawn_times.place, ones * done)
        loss = objective.losses(model, head, samples).total.mean()
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"not finite at update {step}")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        keep = (1 - 1 / (step + 1)) ** (1 + 12)
        with torch.no_grad():
            for mean, value in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
    return network(average, objective).eval()


def drawn(data, noise: Noise):
    """Fresh data, (B, 2) float32."""
    which = (noise.at("which").uniform(torch.zeros(len(noise.index)).double()) * len(data.means)).long()
    return data.take(which, noise.at("where")).float()


def sliced(a, b, directions: int = 128) -> float:
    """The sliced Wasserstein-1 distance of two sets of as many points."""
    turn = (torch.arange(directions) + 0.5) * (math.pi / directions)
    lines = torch.stack([turn.cos(), turn.sin()]).double()
    gap = (a.double() @ lines).sort(0).values - (b.double() @ lines).sort(0).values
    return float(gap.abs().mean())


@torch.no_grad()
def judged(model, data, seed: int) -> dict:
    """The figures of the module's docstring for one network."""
    exact = data.denoiser(model.process)
    errors = {}
    for w in LEVELS:
        t = float(SCHEDULE.time(torch.tensor(2 * math.log(math.cos(w) / math.sin(w)), dtype=torch.float64)))
        noise = Noise.of(seed + 77, COUNT)
        xt = model.process.corrupt(drawn(data, noise), t, noise.at("noise"))
        cond = {"toward": 0.0 * torch.ones(COUNT)} if model.told else {}
        end = model(xt, t, cond).mean
        errors[w] = float((end - exact.flow(xt, t, 0.0, steps=50)).square().mean().sqrt())
    real = drawn(data, Noise.of(seed + 999, COUNT))
    floor = sliced(drawn(data, Noise.of(seed + 555, COUNT)), real)
    found = {"rmse": errors, "floor": floor}
    middle = float(SCHEDULE.time(torch.tensor(-2 * math.log(0.8), dtype=torch.float64)))
    quarter = [float(SCHEDULE.time(torch.tensor(-2 * math.log(r), dtype=torch.float64))) for r in (2.5, 0.8, 0.3)]
    for count, times in ((1, [1.0, 0.0]), (2, [1.0, middle, 0.0]), (4, [1.0, *quarter, 0.0])):
        for gamma in (0.0, 1.0) if count > 1 else (0.0,):
            plan = Jump(gamma).plan(SCHEDULE, times)
            made = bd.sample(model, index=list(range(COUNT)), plan=plan, seed=seed)
            found[f"sw_{count}_gamma_{gamma:g}"] = sliced(made, real) / floor
    return found


METHODS = {  # objective, times, rate, whether the rate falls
    "paths": (fewstep.MidTraining(), Angle(), 2e-3, True),
    "maps": (fewstep.PathMap(), Angle(), 2e-3, True),
    "easy": (fewstep.EasyConsistency(base=2.0, stages=8), wide(1.0), 1e-3, True),
    "discrete": (fewstep.ConsistencyDistillation(), Angle(), 1e-3, True),
    "continuous": (fewstep.ContinuousConsistency(), Angle(), 1e-3, True),
    "align": (fewstep.AlignYourFlow(), Angle(), 1e-3, True),
    "trajectory": (fewstep.Trajectory(), Angle(), 1e-3, True),
    "mean-flow": (fewstep.MeanFlow(), Angle(), 1e-3, True),
    "alpha-flow": (fewstep.AlphaFlow(), Angle(), 1e-3, True),
    "shortcut": (fewstep.Shortcut(), Angle(), 1e-3, True),
    "consistency": (fewstep.ImprovedConsistency(), wide(1.0), 1e-3, True),
    "control: shuffled noise": (Shuffled(base=2.0, stages=8), wide(1.0), 1e-3, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    options = parser.parse_args()
    data, rows = mixture(), []
    for seed in options.seeds:
        torch.manual_seed(seed)
        start = MLP(2, width=128, blocks=3)
        teacher = train(start, Denoising(), Angle(), options.updates, seed, data, 2e-3, True)
        rows.append({"method": "control: the denoiser", "seed": seed, **judged(teacher, data, seed)})
        for name in options.methods:
            objective, times, lr, settles = METHODS[name]
            began = time.process_time()
            try:
                model = train(copy.deepcopy(teacher.net), objective, times, options.updates, seed, data, lr, settles)
                row = judged(model, data, seed)
            except FloatingPointError as error:
                row = {"failed": str(error)}
            rows.append({"method": name, "seed": seed, "cpu_seconds": time.process_time() - began, **row})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"updates": options.updates, "batch": BATCH, "samples": COUNT, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
