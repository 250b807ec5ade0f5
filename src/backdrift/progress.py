"""Progress bars for long work (rich); the numerics know nothing of them and only call back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _bar(*columns):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def training_bar() -> Iterator[Callable]:
    """An `on_progress` for `train`: steps, loss, pictures per second and the time left."""
    from rich.progress import TextColumn

    with _bar(TextColumn("loss {task.fields[loss]:.4f}"), TextColumn("{task.fields[rate]:.0f} pictures/s")) as bar:
        task = bar.add_task("training", total=None, loss=float("nan"), rate=0.0)

        def show(progress) -> None:
            bar.update(
                task,
                total=progress.steps,
                completed=progress.step,
                loss=progress.loss,
                rate=progress.pictures_per_second,
            )

        yield show


@contextmanager
def counting_bar(words: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) that draws a bar with a description."""
    with _bar() as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
