"""`backdrift train --task control`: a side network through which a trained run follows pictures of edges or regions."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from backdrift.cli.tasks import Task
from backdrift.cli.tasks.standing import base_of, kept, suited
from backdrift.errors import UserError


@dataclass(frozen=True)
class Control(Task):
    """A side network for the run that --from names, whose own weights stay as they are."""

    hint: tuple[str, ...] = ("edges",)
    """What is followed: edges, segmentation, lowresolution, or several."""
    threshold: float | None = None
    """Of edges: change of brightness per pixel, of at most 1 (0.5)."""
    regions: int | None = None
    """Of a segmentation: bands of brightness (3)."""

    def pictures(self, typed, pictures):
        return suited(pictures, base_of(typed, "control"))

    def choices(self, typed, pictures, made):
        from backdrift.data.derived import channels
        from backdrift.train.onto import ControlledChoice

        base, derived = base_of(typed, "control"), self.derived()
        made = kept(made, base)
        net = ControlledChoice(base.options().net, channels(derived, pictures.shape))
        return replace(made, net=net, derived=derived, lr=made.lr * net.pace if typed.lr is None else typed.lr)

    def derived(self):
        """The conditions that were typed, as objects."""
        from backdrift.cli.choices import choose
        from backdrift.data.derived import Edges, KnownPixels, Segmentation

        found = [choose("derived", word) for word in self.hint]
        if not found or any(isinstance(one, KnownPixels) for one in found):
            raise UserError("--control.hint is edges, segmentation or lowresolution; for masks, --task inpainting.")
        for name, cls in (("threshold", Edges), ("regions", Segmentation)):
            value = getattr(self, name)
            if value is None:
                continue
            if not any(isinstance(one, cls) for one in found):
                raise UserError(f"--control.{name} is of a hint that is not trained here; leave it out.")
            found = [replace(one, **{name: value}) if isinstance(one, cls) else one for one in found]
        return tuple(found)

    def drawing(self, pictures, run):
        from backdrift.data import save_grid
        from backdrift.report.control import sheet

        def draw(step: int, denoiser) -> None:
            save_grid(sheet(denoiser, self.derived(), pictures), run.samples / f"step-{step:07d}.png", columns=12)

        return draw

    def finish(self, trained, pictures, run):
        from backdrift.report.control import write_control_report

        path, lines = write_control_report(run, trained.network, pictures)
        own = shlex.quote(str(run.folder))
        return [
            *lines,
            f"model   {run.model_path}",
            f"report  {path}",
            f"next    backdrift sample {own} --control picture.png",
        ]
