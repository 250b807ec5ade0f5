"""Every choice of a training, with defaults by the size of the pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

from backdrift.config import kind
from backdrift.data.derived import Derived
from backdrift.data.pictures import Pictures
from backdrift.errors import UserError
from backdrift.objective.base import Objective
from backdrift.objective.denoising import Denoising
from backdrift.objective.importance import ByLoss
from backdrift.objective.pairing import Independent, Pairing
from backdrift.objective.times import Angle, Times
from backdrift.schedule import Cosine as CosineSchedule
from backdrift.schedule import Schedule
from backdrift.target import EDM_F, Target
from backdrift.train.ema import Average, Power, Snapshots
from backdrift.train.networks import NetChoice, UNetChoice
from backdrift.train.precision import Precision
from backdrift.train.rate import Cosine, Rate
from backdrift.train.texts import TextEncoder

COUNTED = ("steps", "log_every", "validate_every", "checkpoint_every", "sample_every")  # in steps


@kind("train.Options")
@dataclass(frozen=True)
class TrainOptions:
    """A whole training, the data apart.

    steps: optimiser steps. batch: pictures per step. parts: pieces in which a batch passes through the network, for
        memory; the result does not depend on it beyond rounding.
    lr: AdamW's rate at its height; `rate` says how it rises and falls. weight_decay: AdamW's. clip: the largest norm of
        the gradient.
    label_dropout: the share of the samples whose label and text are hidden, for guidance. flip: mirror pictures left to
        right at random.
    text: what reads the texts of the pictures, if they are a condition (`with_text`).
    derived: conditions that are made from the pictures, after mirroring.
    average: of the weights. snapshots: kept so that another average can be chosen afterwards.
    precision: of the network's arithmetic.
    std: the standard deviation of the data that the network is made for; None is that of the training pictures.
    target: what the network predicts. times: which are trained. objective: the loss. pairing: of noise and pictures.
    log_every, validate_every, checkpoint_every, sample_every: in steps; 0 is never (a run saves at its end anyway).
    """

    steps: int = 20_000
    batch: int = 64
    parts: int = 1
    lr: float = 1e-3
    rate: Rate = field(default_factory=Cosine)
    weight_decay: float = 0.0
    clip: float = 1.0
    label_dropout: float = 0.1
    flip: bool = False
    text: TextEncoder | None = None
    derived: tuple[Derived, ...] = ()
    seed: int = 0
    average: Average = field(default_factory=Power)
    snapshots: Snapshots = field(default_factory=Snapshots)
    precision: Precision = Precision.auto
    net: NetChoice = field(default_factory=UNetChoice)
    schedule: Schedule = field(default_factory=CosineSchedule)
    std: float | None = None
    target: Target = field(default_factory=EDM_F)
    times: Times = field(default_factory=Angle)
    objective: Objective = field(default_factory=Denoising)
    pairing: Pairing = field(default_factory=Independent)
    log_every: int = 20
    validate_every: int = 500
    checkpoint_every: int = 500
    sample_every: int = 1000

    def __post_init__(self):
        object.__setattr__(self, "precision", Precision(self.precision))
        for name in ("steps", "batch", "parts", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be positive and finite, not {getattr(self, name)}.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed}.")
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"label_dropout is a share of the labels, from 0 to 1, not {self.label_dropout}.")
        kinds = [each.kind for each in self.derived]
        if len(set(kinds)) < len(kinds):
            raise UserError("A kind of derived condition can be listed once only.")
        if isinstance(self.times, ByLoss) and getattr(self.objective, "uncertainty", None) is not None:
            raise UserError(
                "A learned uncertainty makes the losses of all times alike, so times cannot follow the losses too: "
                "choose one of the two."
            )
        if self.parts > self.batch:
            raise UserError(f"A batch of {self.batch} cannot pass in {self.parts} parts.")
        for name in ("weight_decay", "validate_every", "checkpoint_every", "sample_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative; 0 turns it off.")

    def with_text(self, text: TextEncoder) -> TrainOptions:
        """The same with the texts of the pictures as a condition; the network is made to look at their tokens.

        A network of someone's own finds them in cond["tokens"], cond["tokens_mask"] and cond["summary"].
        """
        takes = "tokens" in {each.name for each in fields(self.net)}
        return replace(self, text=text, net=replace(self.net, tokens=text.width) if takes else self.net)

    def at_batch(self, batch: int) -> TrainOptions:
        """The same training in batches of another size: as many pictures in all, and between two events.

        The learning rate and the average, which are counted in shares and in pictures anyway, stay.
        """
        steps = {name: round(getattr(self, name) * self.batch / batch) for name in COUNTED if getattr(self, name)}
        return replace(self, batch=batch, **{name: max(1, count) for name, count in steps.items()})


def for_pictures(pictures: Pictures) -> TrainOptions:
    """Options for these pictures, by their size and standard deviation."""
    std = round(pictures.split()[0].std, 4)
    if std == 0:
        raise UserError("All pixels of the training pictures are equal, so there is nothing to learn.")
    side = max(pictures.shape[1:], default=1)  # representations have none
    law = {"target": EDM_F(std), "times": Angle(std)}
    if side <= 12:
        net = UNetChoice(width=32, multipliers=(1, 2, 4), blocks=1, attention=(1, 2))
        often = {"log_every": 10, "validate_every": 100, "checkpoint_every": 250, "sample_every": 250}
        return TrainOptions(steps=750, batch=128, net=net, **often, **law)
    # a level for every halving down to about 8 pixels, attention from 16 pixels down
    levels = min(4, 1 + max(0, math.ceil(math.log2(side / 8))))
    attention = tuple(level for level in range(levels) if side / 2**level <= 16) or (levels - 1,)
    net = UNetChoice(width=64, multipliers=(1, 2, 2, 4)[:levels], attention=attention)
    return TrainOptions(net=net, lr=5e-4, **law)
