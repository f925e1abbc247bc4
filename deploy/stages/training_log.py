"""Numbers of a training before distillation: <name>.jsonl and TensorBoard, in the run folder."""

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from common.exchange.metrics import EventFile
from common.files.atomic import unwritable, write_text
from deploy.run_folder.workspace import Workspace


class TrainingLog:
    """A metrics sink. Rows after `done` are of a process that died after its last snapshot: their
    steps are done again."""

    def __init__(self, workspace: Workspace, name: str, *, done: int) -> None:
        path, board = workspace.root / f"{name}.jsonl", workspace.board / name
        if not done:
            shutil.rmtree(board, ignore_errors=True)
        write_text(path, "".join(f"{json.dumps(row)}\n" for row in _rows(path, done)))
        self._path = path
        try:
            self._file = path.open("a")
            self._board = EventFile(board, done + 1)
        except OSError as error:
            raise unwritable(path, error) from error

    def post(self, row: Mapping[str, Any]) -> None:
        """Write a row, at once.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._board.add(row)
            self._file.flush()
            self._board.flush()
        except OSError as error:
            raise unwritable(self._path, error) from error

    def close(self) -> None:
        """Let go of the files.

        Raises:
            InputError: what was still to be written could not be.
        """
        try:
            with closing(self._board), self._file:
                pass
        except OSError as error:
            raise unwritable(self._path, error) from error


def _rows(path: Path, done: int) -> list[dict[str, Any]]:
    """What was written up to step `done`; a last line may be cut off."""
    if not done or not path.exists():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= done:
            rows.append(row)
    return rows
