"""Numbers that people look at: collected anywhere, written in one place.

`MetricsHub` is a mailbox that roles post to; `MetricsLog` turns it into JSONL and TensorBoard.
A row holds the scalars of one step, or under the key PROFILE the curves of a window of steps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from common.errors import InputError

PROFILE = "profile"
"""Key of rows that hold curves (learner/profile.py) and no scalars."""


class MetricsSink(Protocol):
    def post(self, row: Mapping[str, Any]) -> None: ...


class MetricsHub:
    """Thread-safe mailbox of metric rows; readers keep their own cursor."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._rows: list[dict[str, Any]] = []

    def post(self, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._rows.append(dict(row))

    def since(self, cursor: int) -> list[dict[str, Any]]:
        with self._lock:
            return self._rows[cursor:]


class MetricsLog:
    """Appends rows to `metrics.jsonl` and to TensorBoard events in `tensorboard/`; curves go to
    `profiles.jsonl`, a line per window."""

    def __init__(self, folder: Path, *, fresh: bool = True) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        try:
            folder.mkdir(parents=True, exist_ok=True)
            mode = "w" if fresh else "a"
            self._scalars = (folder / "metrics.jsonl").open(mode)
            self._curves = (folder / "profiles.jsonl").open(mode)
            self._board = SummaryWriter(str(folder / "tensorboard"))
        except OSError as error:
            raise InputError(f"{folder}: metrics cannot be written: {error.strerror}") from error

    def write(self, rows: list[dict[str, Any]]) -> None:
        scalars = [row for row in rows if PROFILE not in row]
        curves = [row for row in rows if PROFILE in row]
        for file, lines in ((self._scalars, scalars), (self._curves, curves)):
            try:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
                file.flush()
            except OSError as error:
                raise InputError(f"{file.name}: cannot be written: {error.strerror}") from error
        for row in scalars:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._scalars.close()
        self._curves.close()
        self._board.close()
