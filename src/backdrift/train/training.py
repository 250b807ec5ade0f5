"""A training between two steps, and the step: draw, corrupt, predict, descend, average."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backdrift.data.pictures import Pictures
from backdrift.denoiser import Network
from backdrift.objective.denoising import denoising
from backdrift.train import checkpoint, ema, guard, metrics, stream
from backdrift.train.options import TrainOptions
from backdrift.train.precision import Precision, arithmetic
from backdrift.train.randomness import random_state, set_random_state

VALIDATED = 512  # validation losses per measurement: enough for 8 bins, little beside the training between two


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
    ):
        self.options, self.pictures, self.held_out = options, pictures, held_out
        self.precision, self.device, self.network = precision, device, network.train()
        average = ema.averaged_copy(network.net)
        self.averaged = Network(average, network.process, network.target, network.event_shape, network.sigma_data)
        self.averaged.eval()
        # listed once: walking through the modules every step is not free
        self.lists = ema.averageable(average), ema.averageable(network.net)
        self.parameters = [p for p in network.net.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=options.lr, betas=(0.9, 0.99), weight_decay=options.weight_decay, fused=True
        )
        self.step = 0
        self.window = metrics.new_window(device)
        self.random = random_state(device)  # as the last step left it: what is drawn between two steps has no effect

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, for a checkpoint."""
        state = checkpoint.pack(self.network.net, self.averaged.net, self.optimiser)
        return {**state, **{f"random.{name}": value for name, value in self.random.items()}, "window": self.window}

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`. Raises `UserError` where they do not fit."""
        checkpoint.unpack(tensors, self.network.net, self.averaged.net, self.optimiser)
        self.random = {name: tensors[f"random.{name}"].clone() for name in self.random}
        self.window = tensors["window"].to(self.device, copy=True)
        self.step = step

    def places(self) -> Tensor:
        """The places in the stream of the next batch."""
        return torch.arange(self.options.batch) + self.step * self.options.batch

    def gradient(self, positions: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of the mean loss at these places to `.grad`; returns the losses and their times, (B,)."""
        losses, times = [], []
        for piece in positions.tensor_split(parts):
            samples = stream.draw(self.pictures, self.options, piece, self.device)
            with arithmetic(self.precision, self.device):
                loss = denoising(self.network, samples.x0, samples.t, samples.noise, samples.cond)
            (loss.sum() / len(positions)).backward()
            losses.append(loss.detach())
            times.append(samples.t)
        return torch.cat(losses), torch.cat(times)

    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.options.lr * self.options.rate.factor((self.step + 0.5) / self.options.steps)

    def advance(self) -> float:
        """One step; returns the batch's mean loss. Raises `guard.NonFinite` before anything has changed."""
        options, positions = self.options, self.places()
        set_random_state(self.random, self.device)
        self.optimiser.zero_grad(set_to_none=True)
        losses, times = self.gradient(positions, options.parts)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, options.clip)
        loss, norm = torch.stack([losses.mean(), norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            set_random_state(self.random, self.device)
            culprit = guard.first_bad(self.network.net, lambda: self.gradient(positions, options.parts))
            numbers = stream.indices(positions, len(self.pictures), options.seed).tolist()
            raise guard.NonFinite(self.step + 1, numbers, culprit)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr()
        self.optimiser.step()
        self.random = random_state(self.device)
        self.step += 1
        ema.update(*self.lists, options.average.keep(self.step * options.batch, options.batch))
        metrics.add(self.window, losses, times, options.schedule, self.network.sigma_data)
        return loss

    def largest_fitting_batch(self) -> int:
        """How many pictures pass through the network at once, found by trying; 0 for none."""

        def trial(count: int) -> None:
            self.optimiser.zero_grad(set_to_none=True)
            self.gradient(self.places()[:count], 1)

        return guard.batch_that_fits(-(-self.options.batch // self.options.parts), trial)

    @torch.no_grad()
    def validate(self) -> tuple[float | None, list[float | None]]:
        """The averaged network's loss on the validation part, in all and by noise level; always the same noise."""
        window = metrics.new_window(self.device)
        for positions in torch.arange(VALIDATED).split(-(-self.options.batch // self.options.parts)):
            samples = stream.held_out(self.held_out, self.options, positions, self.device)
            with arithmetic(self.precision, self.device):
                loss = denoising(self.averaged, samples.x0, samples.t, samples.noise, samples.cond)
            metrics.add(window, loss, samples.t, self.options.schedule, self.network.sigma_data)
        return metrics.means(window)
