"""Ctrl-C and SIGTERM ask a command to end in order; a second one ends it at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


@contextmanager
def on_stop(stop: Callable[[str], object]) -> Iterator[None]:
    """Call `stop` with "stopped by Ctrl-C" or "stopped by SIGTERM" on the first of these signals.

    From then on they do what they do in any program.
    """

    def first(number: int, frame: object) -> None:
        put_back()
        stop(f"stopped by {NAMES[signal.Signals(number)]}")

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, first) for number in NAMES}
    try:
        yield
    finally:
        put_back()


@contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """A function that says whether the user asked to stop, and how."""
    asked: list[str] = []
    with on_stop(asked.append):
        yield lambda: asked[0] if asked else None
