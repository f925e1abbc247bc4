"""Ctrl-C and SIGTERM: the first one ends a run in order, the second one ends it at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
EXIT_CODES = {"Ctrl-C": 130, "SIGTERM": 0}
"""SIGTERM is what schedulers say before they take a machine away; the run ended as asked."""
SHOW_CURSOR = "\x1b[?25h"


class Stopped(KeyboardInterrupt):
    """The run was stopped before it did anything that has to be ended in order."""


class StopRequest:
    """Whether somebody asked the run to stop, and how."""

    def __init__(self) -> None:
        self.name: str | None = None
        """Ctrl-C or SIGTERM; None as long as nobody asked."""
        self._is_polled = False

    def poll_from_here(self) -> None:
        """From now on the caller looks at `name`; before, a request is raised as Stopped."""
        self._is_polled = True

    def receive(self, number: int, frame: object) -> None:
        name = NAMES[signal.Signals(number)]
        if self.name is not None:
            if sys.stderr.isatty():
                sys.stderr.write(SHOW_CURSOR)  # a progress bar hides it
            sys.stderr.write(f"\nvarkd: {name} again: ended at once\n")
            sys.stderr.flush()
            os._exit(128 + number)
        self.name = name
        if not self._is_polled:
            raise Stopped


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Receive both signals for the block."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in NAMES}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
