"""When snapshots are stored, and how beside training: copied on the spot, written by a thread."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import InputError
from common.files.rows import Rows
from common.files.snapshots import Snapshots


class Checkpoints:
    """Of rank 0. One snapshot is written at a time; training waits where the next one is due before
    that, and what was written wrong is raised from the next call."""

    def __init__(self, snapshots: Snapshots, *, every: int, minutes: float) -> None:
        """Due every `every` steps, and `minutes` after the last one; 0 is never."""
        self._snapshots = snapshots
        self._every = every
        self._seconds = 60 * minutes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        self._writing: Future[None] | None = None
        self._newest = (0, time.monotonic())

    def begin(self, step: int) -> None:
        """There is one of `step`, or that is where everything begins."""
        self._newest = (step, time.monotonic())

    def is_due(self, step: int) -> bool:
        newest, stored = self._newest
        if step == newest:
            return False
        by_step = self._every and step % self._every == 0
        return bool(by_step or (self._seconds and time.monotonic() - stored >= self._seconds))

    def is_missing(self, step: int) -> bool:
        return step != self._newest[0]

    def save(
        self,
        step: int,
        tensors: Mapping[str, Any],
        constant: Mapping[str, Any],
        facts: dict[str, Any],
    ) -> None:
        """Have a snapshot written of `tensors` as they are now, and of `constant` ones, which
        nobody changes.

        Raises:
            Diverged: a tensor that must be finite is not.
            InputError: the one before could not be written.
        """
        self.settle()
        self._snapshots.require_finite(step, tensors)
        copied = {**copied_state(tensors), **constant}
        self._writing = self._pool.submit(self._snapshots.write, step, copied, facts)
        self._newest = (step, time.monotonic())

    def check(self) -> None:
        """Say whether one could not be written, as soon as that is known.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        if self._writing is not None and self._writing.done():
            self._require_written()

    def settle(self) -> None:
        """Wait for the one that is being written.

        Raises:
            InputError: as `check`.
        """
        self._require_written()

    def _require_written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except InputError:
            self._newest = (0, self._newest[1])
            raise

    def close(self) -> None:
        """Begin none any more; the one that is being written gets its time."""
        if self._writing is not None:
            wait([self._writing])
        self._pool.shutdown()

    def folder(self, step: int) -> Path:
        """Where the one of `step` is."""
        return self._snapshots.folder(step)

    def describe(self) -> str:
        """What is there to go on from, for a run that has to end."""
        with suppress(InputError):
            self.settle()
        return self._snapshots.describe()


def copied_state(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """On the CPU; tensors that share their memory still do."""
    return _copied(tensors, {})


def _copied(value: Any, made: dict[Any, Tensor]) -> Any:
    if isinstance(value, Tensor):
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape)
        key = (*place, value.stride(), value.dtype)
        if key not in made or not value.numel():
            made[key] = value.detach().to("cpu", copy=True)
        return made[key]
    if isinstance(value, Rows):
        return Rows(_copied(value.value, made), value.first, value.count)
    if isinstance(value, Mapping):
        return {name: _copied(inner, made) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner, made) for inner in value)
    return value
