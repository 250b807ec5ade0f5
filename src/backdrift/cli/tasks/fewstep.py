"""`backdrift train --task fewstep`: a model of one, two or four evaluations, from data alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from backdrift.cli.tasks.generate import Generate
from backdrift.errors import UserError


@dataclass(frozen=True)
class FewStep(Generate):
    """What is learned is where a path leads, and not the average of all pictures it may come from.

    Its loss is no measure of progress; the Fréchet distance of samples in one evaluation is recorded instead, and a
    training whose samples collapse stops and says so.
    """

    method: str = "mean-flow"
    """mean-flow, alpha-flow, shortcut, consistency, easy-consistency or continuous-consistency (docs/few-steps.md)."""

    def choices(self, typed, pictures, made):
        from backdrift.cli import nearest
        from backdrift.cli.choices import from_data
        from backdrift.cli.parse import notice
        from backdrift.objective import Denoising
        from backdrift.onestep import NO_MEASURE

        known = from_data()
        if self.method not in known:
            raise UserError(
                f"There is no few-step method {self.method!r}{nearest(self.method, known)}; choose {', '.join(known)}."
            )
        if made.objective != Denoising():
            raise UserError("A few-step model has a loss of its own; leave the options of the loss out.")
        notice(NO_MEASURE)
        often = made.sample_every or max(1, made.steps // 8)
        return replace(made, objective=known[self.method], validate_every=0, sample_every=often)

    def drawing(self, pictures, run):
        from backdrift.onestep import Watch

        draw, watched = super().drawing(pictures, run), []

        def show(step: int, denoiser) -> dict:
            if not watched:
                watched.append(Watch(pictures, run.options().steps))
            draw(step, denoiser)
            return watched[0](step, denoiser)

        return show

    def finish(self, trained, pictures, run):
        from backdrift.distillation import plans

        lines = super().finish(trained, pictures, run)
        for count, plan in plans(trained.network, run.options().objective, 1, pictures).items():
            plan.save(run.tuned_plan(count))
        return [*lines[:-1], f"{lines[-1]} --steps 2"]
