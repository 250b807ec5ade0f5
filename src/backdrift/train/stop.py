"""Stopping between two steps: Ctrl-C and SIGTERM ask for it, a second Ctrl-C does not wait."""

from __future__ import annotations

import signal
import threading


class Stopped(KeyboardInterrupt):
    """Training was asked to stop and did so between two steps; the message says what was saved."""


class StopRequest:
    """Inside `with StopRequest() as stop:` the first SIGINT or SIGTERM sets `stop.asked`; the second interrupts.

    patient: the second does not, for a process of torchrun, to which one Ctrl-C comes twice, from the terminal and from
    torchrun (which does not wait for longer than half a minute). Outside the main thread, where signals cannot be
    caught, nothing is changed.
    """

    def __init__(self, patient: bool = False):
        self.asked, self._patient = False, patient
        self._old: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _handle(self, number, frame) -> None:
        if self.asked and not self._patient:
            raise KeyboardInterrupt
        self.asked = True
