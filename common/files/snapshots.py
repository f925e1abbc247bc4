"""Resumable training state on disk, verified when it is read.

A snapshot is a folder named after its step, with `tensors.pt` (nested tensors, read back with
`weights_only`) and `facts.json`: JSON facts, the size and digest of tensors.pt, and a digest of
itself. It is flushed to disk before it gets its name: a snapshot that has one is whole, and one
that was damaged later is found out.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import Diverged, InputError, RunFailed
from common.files.atomic import unwritable
from common.files.paths import read_json
from common.files.pickled import read_pickle
from common.finite import is_finite

FORMAT = "varkd-snapshot-1"
TENSORS = "tensors.pt"
FACTS = "facts.json"
MOST_FACTS = 2**26
"""Bytes; more is no file of ours."""


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
    ) -> None:
        """`facts` go into every snapshot; entries of the tensors named in `finite` must be so.
        `guard` raises where nothing may be stored any more; it is asked before anything changes."""
        self.root = root
        self._keep = keep
        self._facts = dict(facts or {})
        self._finite = finite
        self._guard = guard

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
        final = self.folder(step)
        temporary = self.root / f".{final.name}.{os.getpid()}.tmp"
        self._guard()
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            torch.save(tensors, temporary / TENSORS)
            text = _describe(temporary / TENSORS, step, {**self._facts, **facts})
            (temporary / FACTS).write_text(text)
            for path in (temporary / TENSORS, temporary / FACTS, temporary):
                _flush(path)
            self._guard()
            self._rename(temporary, final)
        except OSError as error:
            raise unwritable(final, error) from error
        except (InputError, RunFailed):  # of the guard
            raise
        except RuntimeError as error:  # torch.save reports a write that was cut off this way
            raise InputError(
                f"{final}: could not be written whole; free some space or choose another --out"
            ) from error
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
        facts = self._read_facts(step)
        path, expected = self.folder(step) / TENSORS, facts["tensors"]
        try:
            size, digest = path.stat().st_size, None
            if size == expected["bytes"]:
                digest = _digest(path)
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from None
        if size != expected["bytes"]:
            raise _damaged(path, f"{size} bytes of {expected['bytes']}")
        if digest != expected["blake2b"]:
            raise _damaged(path, "other contents than were written")
        return facts["facts"]

    def load(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(tensors, facts) of a step, on the CPU.

        Raises:
            InputError: as `verify`, or the tensors are none that a run can have written.
        """
        facts, path = self.verify(step), self.folder(step) / TENSORS
        try:
            tensors = read_pickle(path)
        except InputError as error:
            raise _damaged(path, f"no tensors of ours ({error})") from None
        if not isinstance(tensors, dict):
            raise _damaged(path, "no tensors of ours")
        if name := self._not_finite(tensors):
            raise _damaged(path, f"{name} is not finite")
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
        _flush(self.root)
        shutil.rmtree(aside, ignore_errors=True)

    def _read_facts(self, step: int) -> dict[str, Any]:
        path = self.folder(step) / FACTS
        try:
            if path.stat().st_size > MOST_FACTS:
                raise _damaged(path, "no facts of ours")
            found = read_json(path, "facts of a snapshot")
            is_whole = found.pop("digest") == _sealed(found) and found["format"] == FORMAT
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _damaged(path, "no facts of ours") from None
        if not is_whole:
            raise _damaged(path, "other contents than were written")
        if found["step"] != step:
            raise _damaged(path, f"it is of step {found['step']}")
        return found

    def _not_finite(self, tensors: Mapping[str, Any]) -> str | None:
        """The first tensor that should be finite and is not."""
        for entry in self._finite:
            for name, tensor in _tensors(tensors.get(entry), entry):
                if not is_finite(tensor):
                    return name
        return None


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}")


def _describe(tensors: Path, step: int, facts: dict[str, Any]) -> str:
    written = {"bytes": tensors.stat().st_size, "blake2b": _digest(tensors)}
    found = {"format": FORMAT, "step": step, "tensors": written, "facts": facts}
    found = json.loads(json.dumps(found))  # as it will be read: keys are strings, tuples lists
    return json.dumps({**found, "digest": _sealed(found)})


def _sealed(facts: dict[str, Any]) -> str:
    canonical = json.dumps(facts, sort_keys=True).encode()
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=16)


def _flush(path: Path) -> None:
    """To disk; of a folder, its entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # not every file system flushes folders
            raise
    finally:
        os.close(handle)


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path} is damaged: {what}")
