"""What a training minimises, as its loop sees it: samples in, one loss per sample out.

An objective is a frozen dataclass. It may train a few numbers of its own beside the network (its `head`), and it says
what is trained around the net (a denoiser, by default) and what that must be able to do; how times are drawn, noise is
paired and gradients are added up is not its affair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from backdrift.denoiser import Network
from backdrift.noise import Noise
from backdrift.process.gaussian import Gaussian
from backdrift.target import Target


@dataclass(frozen=True)
class Samples:
    """What one pass needs.

    x0: (B, C, H, W). t: (B,) on the CPU. cond: conditions, (B, ...) each. noise: the samples' own draws. density: (B,),
    of the law of t at t. share: (B,), what each loss counts for, with mean 1 over the draws. place: (B,), t as a
    quantile of its law. progress: (B,), the share of the training that lies before the sample.
    """

    x0: Tensor
    t: Tensor
    cond: Mapping[str, Tensor]
    noise: Noise
    density: Tensor
    share: Tensor
    place: Tensor
    progress: Tensor


class Losses(NamedTuple):
    """Of each sample, (B,). total: what is minimised. shown: what is reported, without a gradient."""

    total: Tensor
    shown: Tensor


class Objective(ABC):
    """Subclasses are frozen dataclasses."""

    @property
    def learned_variance(self) -> bool:
        """Whether the network gives a variance beside its prediction: twice as many channels out."""
        return False

    @property
    def estimating(self) -> bool:
        """Whether the network is shown an estimate of x_0: twice as many channels in."""
        return False

    @property
    def ends_path(self) -> bool:
        """Whether what is learned is the end of the flow's path, and not the average of x_0."""
        return False

    @property
    def told(self) -> tuple[str, ...]:
        """Further conditions that the network is made to heed (see `Network`)."""
        return ()

    def outputs(self, channels: int, classes: int) -> int:
        """How many numbers the net returns, at each pixel where it returns pictures, for pictures of `channels`."""
        return channels * (2 if self.learned_variance else 1)

    def network(
        self,
        net: nn.Module,
        process: Gaussian,
        target: Target,
        shape: tuple[int, ...],
        std: float,
        classes: tuple[str, ...],
    ) -> nn.Module:
        """What is trained around `net` for pictures of `shape`, their standard deviation and the names of their labels.

        A `Network`, or a module that has, as that does, .net, .process, .event_shape, .sigma_data and .around(net).
        """
        return Network(
            net,
            process,
            target,
            shape,
            std,
            learned_variance=self.learned_variance,
            self_conditioning=self.estimating,
            ends_path=self.ends_path,
            told=self.told,
        )

    def head(self, network: Network) -> nn.Module:
        """What is trained beside `network`, on the CPU; by default nothing."""
        return nn.Identity()

    @abstractmethod
    def losses(self, network: Network, head: nn.Module, samples: Samples) -> Losses:
        """One loss per sample; their mean over samples weighted by `share` is the objective."""
