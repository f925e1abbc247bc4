"""What nobody foresaw: the screen gets a sentence, a file the traceback."""

import sys
import tempfile
import traceback
from datetime import datetime
from pathlib import Path
from types import TracebackType

from common.errors import UNDERSTOOD

MEMORY = ("MemoryError", "OutOfMemoryError")
"""Python's and torch's, by name: torch is not loaded for this."""
GO_ON = "go on from the newest snapshot with --resume"


class FaultLog:
    """Tracebacks of a run, one after the other, in a file that is there only if there are any."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "faults.log" if folder else None

    def sentence(self, who: str, error: BaseException) -> str:
        """`error` in a line; unless that says it all, its traceback is kept and named."""
        if isinstance(error, UNDERSTOOD):
            return str(error)
        text = summary(error)
        if self._path is None:
            return f"{text}; {GO_ON}"
        trace = "".join(traceback.format_exception(error))
        try:
            with self._path.open("a") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {who}\n{trace}\n")
        except OSError:  # the sentence matters more
            return f"{text}; {GO_ON}"
        return f"{text} (the traceback is in {self._path}); {GO_ON}"


def summary(error: BaseException) -> str:
    """Type and last line: the first lines of an error from another process are its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def report_faults(command: str) -> None:
    """From now on an exception that nobody catches ends `command` with a sentence and code 1."""

    def report(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        trace = "".join(traceback.format_exception(kind, error, at))
        try:
            with tempfile.NamedTemporaryFile(
                "w", prefix="varkd-fault-", suffix=".log", delete=False
            ) as file:
                file.write(trace)
        except OSError:
            sys.stderr.write(trace)
            return
        if kind.__name__ in MEMORY:
            advice = f"use smaller batches, or a machine with more memory (see {file.name})"
        else:
            advice = f"this is a fault of varkd, not of your files: report it with {file.name}"
        sys.stderr.write(f"varkd {command}: {summary(error)}; {advice}\n")

    sys.excepthook = report
