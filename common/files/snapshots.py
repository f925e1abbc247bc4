"""Resumable training state on disk, verified when it is read.

A snapshot is a folder named after its step, with `tensors.pt` (nested tensors, read back with
`weights_only`) and `facts.json`: JSON facts, the size and digest of tensors.pt, and a digest of
itself. Of a state that lies over several processes each writes its rows (common/files/rows.py), and
the facts name these files as well. It is flushed to disk before it gets its name: a snapshot that
has one is whole, and one that was damaged later is found out.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from common.errors import Diverged, InputError, RunFailed
from common.files.atomic import unwritable
from common.files.pickled import read_pickle
from common.files.rows import Rows, places, row_files, shelved, with_rows
from common.files.sealed import FACTS, TENSORS, Part, damaged, description, flush, read_description
from common.finite import is_finite

FILE_BYTES = 2**28
"""Of rows; as much memory is taken, and training held up, while one is made."""


class Snapshots:
    """One folder per step below `root`; the newest ones stay."""

    def __init__(
        self,
        root: Path,
        *,
        keep: int = 2,
        facts: Mapping[str, Any] | None = None,
        finite: tuple[str, ...] = (),
        guard: Callable[[], object] = lambda: None,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        """`facts` go into every snapshot; entries of the tensors named in `finite` must be so.
        `guard` raises where nothing may be stored any more; it is asked before anything changes."""
        self.root = root
        self._keep = keep
        self._facts = dict(facts or {})
        self._finite = finite
        self._guard = guard
        self._file_bytes = file_bytes

    def folder(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a snapshot, damaged or not, in order."""
        names = [folder.name.removeprefix("step-") for folder in self.root.glob("step-*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def newest_step(self) -> int | None:
        """The step of the newest snapshot, without reading it."""
        return max(self.steps(), default=None)

    def save(self, step: int, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """Store nested tensors and JSON facts for `step`; older snapshots are pruned after.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
            Diverged: a tensor that must be finite is not; the snapshots before stay.
        """
        self.require_finite(step, tensors)
        self.write(step, tensors, facts)

    def require_finite(self, step: int, tensors: Mapping[str, Any]) -> None:
        """Refuse to store what nobody could go on from.

        Raises:
            Diverged: a tensor that must be finite is not; the snapshots before stay.
        """
        if name := self._not_finite(tensors):
            raise Diverged(f"step {step}: {name} is not finite; no snapshot of it is kept")

    def write(self, step: int, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """As `save`, of tensors that were looked at."""
        temporary = self.root / f".{self.folder(step).name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        self._seal(temporary, step, tensors, facts, [])

    def part_names(self, part: int, parts: int, rows: Mapping[str, Rows]) -> list[str]:
        """Of the files of one of several processes, counted from 0, each of which has rows of the
        same tensors."""
        files = max(shelved(rows, parts, self._file_bytes).values())
        return [f"rows-{part + 1}-of-{parts}-{file + 1}.safetensors" for file in range(files)]

    def write_part(self, step: int, part: int, parts: int, rows: Mapping[str, Rows]) -> list[Part]:
        """One of several processes' rows; `seal` makes a snapshot of all of them.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        self._guard()
        folder, names = self._together(step), self.part_names(part, parts, rows)
        with _writing(self.folder(step)):
            folder.mkdir(parents=True, exist_ok=True)
            numbers = shelved(rows, parts, self._file_bytes)
            row_files().write_rows(folder, names, rows, numbers)
            for name in names:
                flush(folder / name)
            return [Part.of(folder / name) for name in names]

    def seal(
        self, step: int, tensors: dict[str, Any], facts: dict[str, Any], parts: Sequence[Part]
    ) -> None:
        """As `write`, of `tensors` whose rows lie in parts that are written, in their order."""
        self._seal(self._together(step), step, tensors, facts, parts)

    def _together(self, step: int) -> Path:
        """Where all processes write."""
        return self.root / f".{self.folder(step).name}.parts"

    def _seal(
        self,
        temporary: Path,
        step: int,
        tensors: dict[str, Any],
        facts: dict[str, Any],
        parts: Sequence[Part],
    ) -> None:
        self._guard()
        try:
            with _writing(self.folder(step)):
                temporary.mkdir(parents=True, exist_ok=True)
                torch.save(tensors, temporary / TENSORS)
                text = description(temporary / TENSORS, step, {**self._facts, **facts}, parts)
                (temporary / FACTS).write_text(text)
                _keep_only(temporary, {TENSORS, FACTS, *(part.name for part in parts)})
                for path in (temporary / TENSORS, temporary / FACTS, temporary):
                    flush(path)
                self._guard()
                self._rename(temporary, self.folder(step))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self.folder(old), ignore_errors=True)
        for unfinished in self.root.glob(".step-*"):  # of a process that was killed meanwhile
            shutil.rmtree(unfinished, ignore_errors=True)

    def verify(self, step: int) -> dict[str, Any]:
        """The facts of a snapshot whose files are as they were written.

        Raises:
            InputError: they are not; the message says what is wrong with which file.
        """
        return self._verified(step)[0]

    def _verified(self, step: int) -> tuple[dict[str, Any], list[str]]:
        """Its facts, and the names of its other files, of which the first one has the tensors."""
        facts, parts = read_description(self.folder(step), step)
        for part in parts:
            part.require_in(self.folder(step))
        return facts, [part.name for part in parts]

    def load(
        self, step: int, *, own: tuple[int, int] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(tensors, facts) of a step, on the CPU. Of tensors that lie in several files, process
        `own[0]` of `own[1]` gets its `Rows` alone.

        Raises:
            InputError: as `verify`, or the tensors are none that a run can have written.
        """
        facts, (first, *names) = self._verified(step)
        path = self.folder(step) / first
        try:
            tensors = read_pickle(path)
        except InputError as error:
            raise damaged(path, f"no tensors of ours ({error})") from None
        if not isinstance(tensors, dict):
            raise damaged(path, "no tensors of ours")
        if names:
            wholes = places(tensors)
            rows = row_files().read_rows(self.folder(step), names, wholes, own or (0, 1))
            tensors = with_rows(tensors, rows, joined=own is None)
        if name := self._not_finite(tensors):
            raise damaged(path, f"{name} is not finite")
        return tensors, facts

    def latest(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The newest (tensors, facts), or None where nothing was stored yet.

        Raises:
            InputError: as `load`.
        """
        newest = self.newest_step()
        return None if newest is None else self.load(newest)

    def describe(self) -> str:
        """What is there to go on from, for a run that has to end."""
        step = self.newest_step()
        return "there is no snapshot" if step is None else f"the last good snapshot is step {step}"

    def drop_after(self, step: int) -> None:
        """Remove the snapshots of later steps."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.folder(later), ignore_errors=True)

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def _rename(self, temporary: Path, final: Path) -> None:
        aside = self.root / f".{final.name}.old"
        shutil.rmtree(aside, ignore_errors=True)
        if final.exists():
            final.replace(aside)
        temporary.replace(final)
        flush(self.root)
        shutil.rmtree(aside, ignore_errors=True)

    def _not_finite(self, tensors: Mapping[str, Any]) -> str | None:
        """The first tensor that should be finite and is not."""
        for entry in self._finite:
            for name, tensor in _tensors(tensors.get(entry), entry):
                if not is_finite(tensor):
                    return name
        return None


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Rows):
        value = value.value
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}")


@contextmanager
def _writing(final: Path) -> Iterator[None]:
    """Makes one sentence of what keeps a snapshot from being written."""
    try:
        yield
    except OSError as error:
        raise unwritable(final, error) from error
    except RunFailed:  # of the guard
        raise
    except (RuntimeError, SafetensorError) as error:  # torch.save was cut off
        raise InputError(
            f"{final}: could not be written whole; free some space or choose another --out"
        ) from error


def _keep_only(folder: Path, names: set[str]) -> None:
    """Without what an earlier attempt, of another number of processes, left."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in names:
            path.unlink()
