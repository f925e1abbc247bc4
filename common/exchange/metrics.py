"""Numbers that people look at: collected anywhere, written in one place.

`MetricsHub` is a mailbox that roles post to; `MetricsLog` turns it into JSONL and TensorBoard.
A row holds the scalars of one step, or under the key PROFILE the curves of a window of steps.
"""

import importlib
import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from common.errors import InputError
from common.exchange.metric_files import LIMIT_BYTES, RowFile

PROFILE = "profile"
"""Key of rows that hold curves (learner/profile.py) and no scalars."""
UNPLOTTED = frozenset({"step", "time", "pid", "version"})
"""Facts of a row that are no quantity to plot against steps; they are in the JSONL alone."""
MOST_PENDING = 10_000
"""Rows that a snapshot has room for."""
_NUMBER = count()


class MetricsSink(Protocol):
    """Takes rows from anywhere; never waits for whoever reads them."""

    def post(self, row: Mapping[str, Any]) -> None:
        """Hand over one row: JSON values by name, with the learner's `step`."""
        ...


class RowLogger(Protocol):
    """Keeps the rows of a run somewhere; called from one thread."""

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Add rows, in the order of their steps; a run that went on from a snapshot repeats some.

        Raises:
            InputError: they cannot be kept.
        """
        ...

    def close(self) -> None:
        """There are no more."""
        ...


class MetricsMailbox(MetricsSink, Protocol):
    """Keeps rows until its reader has stored them."""

    def pending(self) -> list[dict[str, Any]]:
        """Rows that may not be stored yet: they belong into the next snapshot."""
        ...


class MetricsHub:
    """Thread-safe mailbox of metric rows for one reader, which keeps its own cursor."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._rows: list[dict[str, Any]] = []
        self._forgotten = 0

    def post(self, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._rows.append(dict(row))

    def since(self, cursor: int) -> list[dict[str, Any]]:
        """The rows from number `cursor` on; those before it have arrived, and are forgotten."""
        with self._lock:
            del self._rows[: max(0, cursor - self._forgotten)]
            self._forgotten = max(self._forgotten, cursor)
            return list(self._rows)

    def pending(self) -> list[dict[str, Any]]:
        """The rows that the reader may not have written yet, the newest ones where he is stuck."""
        with self._lock:
            return self._rows[-MOST_PENDING:]


class MetricsLog:
    """Appends rows to `metrics.jsonl` and to TensorBoard events in `tensorboard/`; curves go to
    `profiles.jsonl`, a line per window. What has grown to the limit goes on in another file.

    Files are opened with the first rows. What they hold of that step and later ones is dropped: it
    is of a run before this one, or of steps that a resumed run, or a learner that died, repeats.
    """

    def __init__(self, folder: Path, limit: int = LIMIT_BYTES) -> None:
        """`limit` are bytes of each file."""
        self._folder = folder
        self._limit = limit
        self._scalars: RowFile | None = None
        self._curves: RowFile | None = None
        self._board: EventFile | None = None
        self._last = 0

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Add rows, in the order of their steps.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        try:
            for row in rows:
                self._write(row)
            for file in (self._scalars, self._curves, self._board):
                if file is not None:
                    file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Let go of the files.

        Raises:
            InputError: what was still to be written could not be.
        """
        files = (self._scalars, self._curves, self._board)
        self._scalars = self._curves = self._board = None
        try:
            with ExitStack() as stack:  # all of them, whatever the first one says
                for file in files:
                    if file is not None:
                        stack.callback(file.close)
        except OSError as error:
            raise self._unwritable(error) from error

    def _write(self, row: dict[str, Any]) -> None:
        is_curve = PROFILE in row
        if self._board is None or row["step"] + is_curve <= self._last:
            self._rewind(row["step"], is_curve)
        file = self._curves if is_curve else self._scalars
        assert file is not None
        assert self._board is not None
        file.write(row)
        if is_curve:
            return
        self._last = row["step"]
        self._board.add(row)

    def _rewind(self, step: int, is_curve: bool) -> None:
        """Begin, or begin again, with `step`, or with its curves, which follow its scalars."""
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._scalars = RowFile(self._folder / "metrics.jsonl", step + is_curve, self._limit)
        self._curves = RowFile(self._folder / "profiles.jsonl", step, self._limit)
        self._board = EventFile(self._folder / "tensorboard", step + is_curve, self._limit)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{self._folder}: metrics cannot be written: {error.strerror or error}; free some "
            "space or choose another --out"
        )


class EventFile:
    """TensorBoard events, written by the caller's thread; another file of them begins at the limit.

    SummaryWriter has a thread of its own, whose traceback is all that says that a disk is full.
    """

    def __init__(self, folder: Path, step: int, limit: int = LIMIT_BYTES) -> None:
        """Events of `step` and later ones in other files of the folder no longer count; a run that
        begins with step 1 removes them."""
        folder.mkdir(parents=True, exist_ok=True)
        if step <= 1:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self._folder = folder
        self._limit = limit
        self._open(step)

    def add(self, row: Mapping[str, Any]) -> None:
        """All scalars of a row, at its step and time."""
        if self._file.tell() >= self._limit:
            self._file.close()
            self._open(row["step"])
        summary = protos("summary").Summary
        numbers = {
            name: value
            for name, value in row.items()
            if name not in UNPLOTTED and isinstance(value, int | float)
        }
        values = [summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._add(step=row["step"], wall_time=row.get("time"), summary=summary(value=values))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _open(self, step: int) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        host, number = socket.gethostname(), next(_NUMBER)  # TensorBoard reads in order of names
        name = f"{int(time.time()):010d}.{host}.{os.getpid()}.{number:04d}"
        self._file = (self._folder / f"events.out.tfevents.{name}").open("wb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        log = protos("event").SessionLog
        start = log(status=log.START)
        self._add(step=step, session_log=start)  # TensorBoard purges from here on

    def _add(self, *, wall_time: float | None = None, **fields: Any) -> None:
        event = protos("event").Event(wall_time=wall_time or time.time(), **fields)
        self._records.write(event.SerializeToString())


def protos(name: str) -> Any:
    """TensorBoard's messages: classes that are made at import, so no type checker sees them."""
    return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")
