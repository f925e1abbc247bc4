"""Files that are as they were written, or are found not to be: a list of their sizes and digests,
as JSON, with a digest of itself."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from common.errors import InputError
from common.files.paths import read_json

FORMAT, FORMAT_OF_ROWS = "varkd-snapshot-1", "varkd-snapshot-2"
"""The second one has files of rows by torch.distributed.checkpoint."""
TENSORS = "tensors.pt"
FACTS = "facts.json"
CHUNK_BYTES = 2**22
MOST_FACTS = 2**26
"""Bytes; more is no file of ours."""


class Readable(Protocol):
    """As much of a file as is asked of it here."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a snapshot or of another list, as it was written."""

    name: str
    bytes: int
    blake2b: str

    @classmethod
    def of(cls, path: Path) -> "Part":
        """As it is now."""
        return cls(path.name, path.stat().st_size, _digest(path))

    @classmethod
    def of_open(cls, name: str, file: Readable, size: int) -> "Part":
        """Of the next `size` bytes of a file that may grow."""
        digest, left = _blake2b(), size
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
        return cls(name, size - left, digest.hexdigest())

    def require_in(self, folder: Path) -> None:
        """Refuse a file that is not as it was written.

        Raises:
            InputError: says what is wrong with it.
        """
        path = folder / self.name
        try:
            size, digest = path.stat().st_size, None
            if size == self.bytes:
                digest = _digest(path)
        except OSError as error:
            raise damaged(path, error.strerror or str(error)) from None
        if size != self.bytes:
            raise damaged(path, f"{size} bytes of {self.bytes}")
        if digest != self.blake2b:
            raise damaged(path, "other contents than were written")


def description(tensors: Path, step: int, facts: dict[str, Any], rows: Sequence[Part]) -> str:
    """The list of a snapshot of `step`: its tensors, the files of rows, and facts of the run's."""
    of_tensors = asdict(Part.of(tensors))
    of_tensors.pop("name")
    written = FORMAT_OF_ROWS if rows else FORMAT
    found = {"format": written, "step": step, "tensors": of_tensors, "facts": facts}
    if rows:
        found["rows"] = [asdict(part) for part in rows]
    found = json.loads(json.dumps(found))  # as it will be read: keys are strings, tuples lists
    return json.dumps({**found, "digest": _seal(found)})


def read_description(folder: Path, step: int) -> tuple[dict[str, Any], list[Part]]:
    """The facts, and the files, of which the first one holds the tensors.

    Raises:
        InputError: the list is not as it was written, or of another step, or the files are of an
            earlier version.
    """
    path = folder / FACTS
    try:
        if path.stat().st_size > MOST_FACTS:
            raise damaged(path, "no facts of ours")
        found = read_json(path, "facts of a snapshot")
        is_whole = found.pop("digest") == _seal(found)
        is_whole &= found["format"] in (FORMAT, FORMAT_OF_ROWS)
        parts = [
            Part(**part) for part in ({"name": TENSORS, **found["tensors"]}, *found.get("rows", ()))
        ]
        is_whole &= all(Path(part.name).name == part.name for part in parts)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged(path, "no facts of ours") from None
    if not is_whole:
        raise damaged(path, "other contents than were written")
    if found["step"] != step:
        raise damaged(path, f"it is of step {found['step']}")
    if "rows" in found and found["format"] == FORMAT:
        raise InputError(
            f"{folder} has rows as an earlier version of varkd stored them, and this one does not "
            "read them; go on with that one and learner.parallel=ddp until it has stored another"
        )
    return found["facts"], parts


def _seal(facts: dict[str, Any]) -> str:
    canonical = json.dumps(facts, sort_keys=True).encode()
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=16)


def flush(path: Path) -> None:
    """To disk; of a folder, its entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # not every file system flushes folders
            raise
    finally:
        os.close(handle)


def damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path} is damaged: {what}")
