"""Snapshots of a learner that lies over several ranks: each writes its rows, rank 0 what they
belong to.

The ranks agree in the steps of training, which they take together: no thread talks to another rank,
and nobody waits for a file to appear.
"""

from collections.abc import Mapping
from concurrent.futures import Future, wait
from itertools import chain
from typing import Any, Protocol

import torch

from common.errors import Diverged
from common.files.rows import Rows, without_rows
from common.files.sealed import Part
from common.files.snapshots import Snapshots
from learner.checkpoints import Checkpoints, copied_state
from learner.process_group import ProcessGroup, first_says

DIGITS = 32
"""Of a file's digest, in hexadecimal."""


class SpreadCheckpoints(Checkpoints):
    """Of every rank; all make the same calls in the same order, but for `describe` and `close`."""

    def __init__(
        self, snapshots: Snapshots, ranks: ProcessGroup, *, every: int, minutes: float
    ) -> None:
        """As `Checkpoints`; rank 0 says what is due."""
        super().__init__(snapshots, every=every, minutes=minutes)
        self._ranks = ranks
        self._part: Future[list[Part]] | None = None
        self._names: list[list[str]] = []
        self._waiting: tuple[int, dict[str, Any], dict[str, Any]] | None = None

    def is_due(self, step: int) -> bool:
        return bool(first_says(self._ranks, super().is_due(step)))

    def save(
        self,
        step: int,
        tensors: Mapping[str, Any],
        constant: Mapping[str, Any],
        facts: dict[str, Any],
    ) -> None:
        """As `Checkpoints.save`; `constant` and `facts` are rank 0's."""
        self.settle()
        self._require_finite(step, tensors)
        rows: dict[str, Rows] = {}
        rest = without_rows(copied_state(tensors), rows)
        rank, world = self._ranks.rank, self._ranks.world
        self._names = [self._snapshots.part_names(each, world, rows) for each in range(world)]
        self._part = self._pool.submit(self._snapshots.write_part, step, rank, world, rows)
        self._waiting = step, {**rest, **constant}, facts
        self.begin(step)

    def check(self) -> None:
        """As `Checkpoints.check`; the snapshot is whole once all ranks have written."""
        if self._part is not None:
            self._agree()
        super().check()

    def settle(self) -> None:
        if self._part is not None:
            wait([self._part])
            self._agree()
        super().settle()
        self._ranks.barrier()  # nobody writes the next one into what is being sealed

    def describe(self) -> str:
        """As `Checkpoints.describe`, but for what is being written: the others may not be here."""
        return self._snapshots.describe()

    def _agree(self) -> None:
        """Hear who has written; with the last one, rank 0 makes a snapshot of the files.

        Raises:
            InputError: this rank could not write its own.
        """
        assert self._part is not None
        assert self._waiting is not None
        ranks = self._ranks
        words = torch.zeros(ranks.world, len(self._names[0]), 2 + DIGITS, dtype=torch.int64)
        if self._part.done():
            found = self._part.result()
            own = [[1, part.bytes, *part.blake2b.encode()] for part in found]
            words[ranks.rank] = torch.tensor(own)
        written = ranks.sum_(words).flatten(0, 1).tolist()
        if not all(is_done for is_done, *_ in written):
            return
        parts = [
            Part(name, size, bytes(digits).decode())
            for name, (_, size, *digits) in zip(chain(*self._names), written, strict=True)
        ]
        if ranks.rank == 0:
            self._writing = self._pool.submit(self._snapshots.seal, *self._waiting, parts)
        self._part = self._waiting = None

    def _require_finite(self, step: int, tensors: Mapping[str, Any]) -> None:
        error = None
        try:
            self._snapshots.require_finite(step, tensors)
        except Diverged as found:
            error = found
        if self._ranks.sum_(torch.tensor(int(error is not None))):
            elsewhere = f"step {step}: a tensor of another rank is not finite"
            raise error or Diverged(f"{elsewhere}; no snapshot of it is kept")


class Storable(Protocol):
    @property
    def is_spread(self) -> bool: ...


def own_part(learner: Storable, ranks: ProcessGroup) -> tuple[int, int] | None:
    """What a rank reads of a snapshot's rows, as `Snapshots.load` takes it."""
    return (ranks.rank, ranks.world) if learner.is_spread else None


def checkpoints_of(
    learner: Storable, snapshots: Snapshots, ranks: ProcessGroup, *, every: int, minutes: float
) -> Checkpoints:
    """Of one rank: rank 0 alone makes calls of them, or all where the learner is spread."""
    if learner.is_spread:
        return SpreadCheckpoints(snapshots, ranks, every=every, minutes=minutes)
    return Checkpoints(snapshots, every=every, minutes=minutes)
