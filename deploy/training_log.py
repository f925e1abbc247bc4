"""Numbers of a training before distillation: <name>.jsonl and TensorBoard, in the run folder."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.checkpoint import write_text
from common.errors import InputError
from deploy.workspace import Workspace


class TrainingLog:
    """A metrics sink. Rows after `done` are of a process that died after its last snapshot: their
    steps are done again."""

    def __init__(self, workspace: Workspace, name: str, *, done: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        path, board = workspace.root / f"{name}.jsonl", workspace.board / name
        try:
            if not done:
                shutil.rmtree(board, ignore_errors=True)
            write_text(path, "".join(f"{json.dumps(row)}\n" for row in _rows(path, done)))
            self._file = path.open("a")
            self._board = SummaryWriter(str(board), purge_step=done + 1)
        except OSError as error:
            raise InputError(f"{path}: metrics cannot be written: {error.strerror}") from error

    def post(self, row: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            name = self._file.name
            raise InputError(f"{name}: cannot be written: {error.strerror}") from error
        for name, value in row.items():
            if name not in ("step", "time"):
                self._board.add_scalar(name, value, row["step"], row["time"])

    def close(self) -> None:
        self._file.close()
        self._board.close()


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
