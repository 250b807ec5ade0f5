"""`backdrift train --task adapter`: a few numbers beside a trained run's weights, which specialise it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from backdrift.cli.tasks import Task
from backdrift.cli.tasks.generate import Generate
from backdrift.cli.tasks.standing import base_of, kept, suited


@dataclass(frozen=True)
class Adapter(Task):
    """Low-rank adapters for the run that --from names, trained on a few pictures and kept apart from it."""

    rank: int = 4
    """Of each adapter: more learn more, and take more room."""

    def pictures(self, typed, pictures):
        return suited(pictures, base_of(typed, "adapter"))

    def choices(self, typed, pictures, made):
        from backdrift.train.onto import AdaptedChoice

        base = base_of(typed, "adapter")
        made, options = kept(made, base), base.options()
        net = AdaptedChoice.of(options.net, base.folder, self.rank, options.text)
        steps = made.steps if typed.steps or typed.length else min(made.steps, 300)
        return replace(made, net=net, derived=options.derived, steps=steps)

    def drawing(self, pictures, run):
        return Generate().drawing(pictures, run)

    def finish(self, trained, pictures, run):
        lines = Generate().finish(trained, pictures, run)
        base, own = Path(trained.config["start_from"]), shlex.quote(str(run.folder))
        return [*lines[:-1], f"next    backdrift sample {shlex.quote(str(base))} --adapter {own} --strength 0.7"]
