"""Waits for what other processes or threads do."""

import time
from collections.abc import Callable, Iterable

import psutil


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Return once `condition()` holds; a test that waits longer fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def require_ended(processes: Iterable[psutil.Process], seconds: float = 30) -> None:
    """All have ended, or do so within `seconds`."""
    last = time.monotonic() + seconds
    while left := [p for p in processes if p.is_running() and p.status() != "zombie"]:
        assert time.monotonic() < last, [p.cmdline() for p in left]
        time.sleep(0.1)
