"""A training between two steps, and the step: draw, corrupt, predict, descend, average."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from backdrift.data.pictures import Pictures
from backdrift.denoiser import Network
from backdrift.objective.base import Losses, Objective, Samples
from backdrift.objective.times import Drawn
from backdrift.train import checkpoint, distributed, ema, guard, metrics, stream
from backdrift.train.distributed import ALONE, World
from backdrift.train.options import TrainOptions
from backdrift.train.precision import Precision, arithmetic
from backdrift.train.randomness import seed_step
from backdrift.train.validation import validate


class Training:
    """The state of a training between two steps, and the step itself."""

    def __init__(
        self,
        options: TrainOptions,
        pictures: Pictures,
        held_out: Pictures,
        network: Network,
        precision: Precision,
        device: torch.device,
        world: World = ALONE,
        sharded: bool = False,
    ):
        self.options, self.pictures, self.held_out = options, pictures, held_out
        self.precision, self.device, self.network = precision, device, network.train()
        self.world, self.sharded = world, sharded
        self.head = options.objective.head(network).to(device)
        self.own = Pass(network, self.head, options.objective)
        average = ema.averaged_copy(network.net)
        self.averaged = network.around(average).eval()
        if sharded:
            self.whole = network.around(ema.averaged_copy(network.net)).eval().cpu()
            distributed.shard(self.own, world)
            distributed.shard(average, world)
        self.shared = self.own if sharded else distributed.replicate(self.own, world)
        # listed once: walking through the modules every step is not free
        self.current = ema.averageable(network.net)
        self.averages: dict[ema.Average, dict[str, Tensor]] = {options.average: ema.averageable(average)}
        for law in options.snapshots.laws:
            self.averages.setdefault(law, {name: x.clone() for name, x in self.averages[options.average].items()})
        self.parameters = [p for p in network.net.parameters() if p.requires_grad]
        # the head is a few numbers in units of their own: neither decay nor clipping is meant for them
        groups = [{"params": self.parameters}, {"params": list(self.head.parameters()), "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(
            groups, lr=options.lr, betas=(0.9, 0.99), weight_decay=options.weight_decay, fused=True
        )
        for p in (p for group in self.optimiser.param_groups for p in group["params"]):
            # laid out before the first step, so that a checkpoint can be read into them
            moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[p] = {"step": torch.zeros((), device=p.device), **moments}
        self.step = 0
        self.memory = options.times.memory()
        self.window = metrics.new_window(device)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, for a checkpoint."""
        state = checkpoint.pack(self.network.net, self.averaged.net, self.head, self.optimiser)
        state |= {"memory": self.memory} if len(self.memory) else {}
        return {**state, **self._tracked(), "window": self.window}

    def restore(self, saved: checkpoint.Saved) -> None:
        """Go on from a checkpoint. Raises `UserError` where it does not fit."""
        if not self._tracked().keys() <= saved.shapes.keys():
            # the run began under a release that kept no snapshots, and goes on without
            self.averages = {self.options.average: self.averages[self.options.average]}
        saved.fill(self.tensors())
        self.step = saved.step

    def _tracked(self) -> dict[str, Tensor]:
        """The averages beside the run's own, by the names that they have in a checkpoint."""
        own = self.options.average
        beside = ((law, average) for law, average in self.averages.items() if law != own)
        return {f"tracked.{law.width:g}.{name}": x for law, average in beside for name, x in average.items()}

    def snapshot(self) -> dict[float, dict[str, Tensor]]:
        """The averages to keep for `posthoc`, by width and name, in one piece; every process must ask."""
        laws = self.options.snapshots.laws
        return {law.width: {k: distributed.whole(x) for k, x in self.averages[law].items()} for law in laws}

    @property
    def keeps_snapshots(self) -> bool:
        """Whether all averages that `posthoc` needs are tracked, and there are some."""
        laws = self.options.snapshots.laws
        return bool(laws) and self.averages.keys() >= set(laws)

    def average(self) -> Network:
        """The averaged network in one piece, in every process; every process must ask."""
        if not self.sharded:
            return self.averaged
        pieces = self.averaged.net.state_dict()
        for name, value in self.whole.net.state_dict().items():
            value.copy_(distributed.whole(pieces[name]))
        return self.whole

    def places(self) -> Tensor:
        """The places in the stream of the next batch."""
        return torch.arange(self.options.batch) + self.step * self.options.batch

    def gradient(self, positions: Tensor, parts: int, alone: bool = False) -> tuple[Tensor, Drawn]:
        """Add the gradient of the mean loss at these places to `.grad`; returns the losses (B,) and their times.

        The mean is over the places of all processes, each bringing as many; alone: over these.
        """
        shown, drawn = [], []
        module, pieces = self.own if alone else self.shared, positions.tensor_split(parts)
        for piece in pieces:
            samples = stream.draw(self.pictures, self.options, piece, self.device, self.memory)
            distributed.average_gradients(module, piece is pieces[-1])
            with arithmetic(self.precision, self.device):
                losses = module(samples)
            ((samples.share.to(losses.total) * losses.total).sum() / len(positions)).backward()
            shown.append(losses.shown)
            drawn.append((samples.t, samples.share, samples.place))
        return torch.cat(shown), Drawn(*map(torch.cat, zip(*drawn, strict=True)))

    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.options.lr * self.options.rate.factor((self.step + 0.5) / self.options.steps)

    def advance(self) -> float:
        """One step; returns the batch's mean loss. Raises `guard.NonFinite` before anything has changed."""
        options, positions = self.options, self.places()
        mine = self.world.part(positions)
        seed_step(options.seed, self.step, self.world.rank)
        self.optimiser.zero_grad(set_to_none=True)
        losses, drawn = self.gradient(mine, options.parts)
        losses, *drawn = self.world.gather([losses, *drawn])
        drawn = Drawn(*drawn)
        norm = distributed.whole(torch.nn.utils.clip_grad_norm_(self.parameters, options.clip))
        loss, norm = torch.stack([(drawn.share.to(losses) * losses).mean(), norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            seed_step(options.seed, self.step, self.world.rank)
            culprits = self.world.everyone(
                guard.first_bad(self.network.net, lambda: self.gradient(mine, options.parts))
            )
            culprit = next(filter(None, culprits), "the loss itself")
            numbers = stream.indices(positions, len(self.pictures), options.seed).tolist()
            raise guard.NonFinite(self.step + 1, numbers, culprit)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr()
        self.optimiser.step()
        self.step += 1
        for law, average in self.averages.items():
            ema.update(average, self.current, law.keep(self.step * options.batch, options.batch))
        self.memory = options.times.learn(self.memory, drawn.place, losses)
        metrics.add(self.window, losses, drawn.t, options.schedule, self.network.sigma_data, drawn.share)
        return loss

    def largest_fitting_batch(self) -> int:
        """How many pictures pass through the network at once, found by trying; 0 for none."""

        def trial(count: int) -> None:
            self.optimiser.zero_grad(set_to_none=True)
            self.gradient(self.places()[:count], 1, alone=True)

        return guard.batch_that_fits(self.at_once, trial)

    @property
    def at_once(self) -> int:
        """How many pictures pass through the network of one process at once."""
        return -(-self.options.batch // (self.world.size * self.options.parts))

    def validate(self) -> tuple[float | None, list[float | None]]:
        """The averaged network's loss on the validation part, in all and by noise level; always the same noise."""
        return validate(self.averaged, self.held_out, self.options, self.precision, self.device, self.world)


class Pass(nn.Module):
    """What a process computes by itself: samples in, one loss per sample out. All that is trained is inside."""

    def __init__(self, network: Network, head: nn.Module, objective: Objective):
        super().__init__()
        self.network, self.head, self.objective = network, head, objective

    def forward(self, samples: Samples) -> Losses:
        """The objective's losses, (B,) each."""
        return self.objective.losses(self.network, self.head, samples)
