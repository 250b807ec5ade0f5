"""What `backdrift train --task WORD` trains; one file per task.

A task is a frozen dataclass. Its fields are its own few options, typed as --WORD.field; everything else (data, run,
steps, batch, rate, seed, continuing) belongs to `cli.train` and is the same for all. To add one: its file here, a field
and a word in `cli.train.Train`. As everywhere in `cli`, nothing heavy is imported before a method is called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod


class Task(ABC):
    """Subclasses are frozen dataclasses of a task's own options."""

    def pictures(self, typed, pictures):
        """The pictures as the task wants them. Raises `UserError` for those that it cannot use."""
        return pictures

    def choices(self, typed, pictures, made):
        """The `TrainOptions` of this task. typed: `cli.train.Train`; made: the options for `pictures` with all that was
        typed. Raises `UserError` for what the task cannot use.
        """
        return made

    def drawing(self, pictures, run):
        """A function of (step, network) that draws into the run every `sample_every` steps, or None."""
        return None

    @abstractmethod
    def finish(self, trained, pictures, run) -> list[str]:
        """Write the report of a `Trained` into the `Run`; returns the lines that tell the user what there is."""
