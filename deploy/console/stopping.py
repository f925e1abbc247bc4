"""Ctrl-C, SIGTERM, a terminal that hangs up and the wall-clock limit end a run in order; a second
signal ends it at once."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
LIMIT = "learner.max_minutes"
EXIT_CODES = {"Ctrl-C": 130, "SIGTERM": 0, "SIGHUP": 129, LIMIT: 0}
"""SIGTERM is what schedulers say before they take a machine away; the run ended as asked."""
SHOW_CURSOR = "\x1b[?25h"


class Stopped(KeyboardInterrupt):
    """Somebody stopped the command; what it had to end in order was ended."""

    def __init__(self, name: str) -> None:
        """`name` is Ctrl-C, SIGTERM, or what asked for it."""
        super().__init__(f"stopped by {name}")
        self.name = name


class StopRequest:
    """Whether somebody asked the run to stop, and how."""

    def __init__(self, limit_seconds: float = 0) -> None:
        """With a limit, the run is to stop after that time as well."""
        self.name: str | None = None
        """Ctrl-C, SIGTERM, LIMIT, or what asked for it; None as long as nobody asked."""
        self._end = time.monotonic() + limit_seconds if limit_seconds else math.inf
        self._is_polled = False
        self._is_signalled = False
        self._asked: str | None = None
        self._terminal = [number for number in (1, 2) if os.isatty(number)]

    def poll_from_here(self) -> None:
        """From now on the caller looks at `name`; before, a request is raised as Stopped."""
        self._is_polled = True

    def heed_limit(self) -> None:
        """Ask for a stop where its time has come; called now and then by who looks at `name`."""
        if self.name is None and time.monotonic() >= self._end:
            self.name = LIMIT

    def ask(self, name: str) -> None:
        """As good as a first signal, for somebody who cannot send one; from any thread."""
        self._asked = name
        os.kill(os.getpid(), signal.SIGTERM)

    def receive(self, number: int, frame: object) -> None:
        name, asked, self._asked = NAMES[signal.Signals(number)], self._asked, None
        if number == signal.SIGHUP:
            self._leave_terminal()
            if self._is_signalled:  # the kernel sends it, and then the shell does
                return
        if self._is_signalled and asked is None:
            if sys.stderr.isatty():
                sys.stderr.write(SHOW_CURSOR)  # a progress bar hides it
            sys.stderr.write(f"\nvarkd: {name} again: ended at once\n")
            sys.stderr.flush()
            os._exit(128 + number)
        self._is_signalled |= asked is None
        self.name = self.name or asked or name
        if not self._is_polled:
            raise Stopped(self.name)

    def _leave_terminal(self) -> None:
        """Nobody reads there any more, and whoever writes gets an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminal:
            os.dup2(nowhere, number)
        os.close(nowhere)

    @property
    def was_raised(self) -> str | None:
        """What asked for a stop while nobody looked at `name`, so that it was raised."""
        return None if self._is_polled else self.name


@contextmanager
def stop_request(limit_seconds: float = 0) -> Iterator[StopRequest]:
    """Receive both signals for the block, and heed a limit, if there is one.

    Raises:
        Stopped: what it was ended by, also where Ray made a plain KeyboardInterrupt of that, or
            a library an error.
    """
    request = StopRequest(limit_seconds)
    heard = [number for number in NAMES if not _is_ignored(number)]
    before = {number: signal.signal(number, request.receive) for number in heard}
    try:
        yield request
    except Stopped:
        raise
    except KeyboardInterrupt:
        raise Stopped(request.name or "Ctrl-C") from None
    except Exception as error:
        if not request.was_raised:
            raise
        # Some library's C code made an error of its own of what was raised inside it.
        raise Stopped(request.was_raised) from error
    finally:
        _install(before)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """For a block that installs handlers of its own: ours are back after it.

    Raises:
        Stopped: such a handler ended the block; nothing else in it may exit.
    """
    before = {number: signal.getsignal(number) for number in NAMES}
    try:
        yield
    except SystemExit:
        raise Stopped("SIGTERM") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            _install(before)


@contextmanager
def hangups_ignored() -> Iterator[None]:
    """By processes that the block starts: they end with us, in order, and not with a terminal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _is_ignored(number: signal.Signals) -> bool:
    """As `nohup` has it; Ctrl-C is for whoever a shell started in the background as well."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _install(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
