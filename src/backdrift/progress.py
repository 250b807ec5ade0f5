"""Progress bars for long work (rich); the numerics know nothing of them and only call back.

A bar appears with the first news, so that a mistake found before any work is a sentence alone, only on a terminal, and
only in the first process of a job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backdrift import processes


@contextmanager
def _bar(words: str, *columns) -> Iterator[Callable]:
    """A callback (done, total, **fields) that draws a bar with a description; fields are for `columns`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = (TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn())
    hidden = processes.rank() > 0 or not console.is_terminal
    bar = Progress(*shown, *columns, TimeRemainingColumn(), console=console, disable=hidden)

    def show(done: int, total: int, **fields) -> None:
        if not bar.tasks:
            bar.start()
            bar.add_task(words, **fields)
        bar.update(bar.tasks[0].id, completed=done, total=total, **fields)

    try:
        yield show
    finally:
        if bar.tasks:
            bar.stop()


@contextmanager
def training_bar() -> Iterator[Callable]:
    """An `on_progress` for `train`: steps, loss, pictures per second and the time left."""
    from rich.progress import TextColumn

    columns = TextColumn("loss {task.fields[loss]:.4f}"), TextColumn("{task.fields[rate]:.0f} pictures/s")
    with _bar("training", *columns) as show:
        yield lambda p: show(p.step, p.steps, loss=p.loss, rate=p.pictures_per_second)


def counting_bar(words: str):
    """A context whose value is a callback (done, total) that draws a bar with a description."""
    return _bar(words)
