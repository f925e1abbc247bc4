"""What something was made of: a hash of every image, and stamps that tell when to look again.

Reading a large set twice takes hours, so content is hashed while it is read. Afterwards files of
the same name, size and times of change are taken for the same; all others are read and compared.
"""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from common.errors import InputError

Stamp = list[int]
"""Size, time of the last change of the content and of the file, in nanoseconds."""


class Source(Protocol):
    """Rows that lie in files."""

    def files(self) -> Sequence[Path]:
        """Those that say which rows there are."""
        ...

    def contents(self) -> Iterator[tuple[str, str]]:
        """(where, hash of the content) of every row."""
        ...


@dataclass
class Reading:
    """Collects while rows are read, in their order."""

    hashes: list[str] = field(default_factory=list)
    files: dict[str, Stamp] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    """What was done to pixels, and to how many images."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def opens(self, path: Path) -> None:
        """Call before a file is read: what changes later is then seen."""
        found = stamp(path)
        with self._lock:
            if found is not None:
                self.files.setdefault(os.fspath(path), found)

    def contents(self) -> "Contents":
        return Contents(self.hashes, self.files)


@dataclass(frozen=True)
class Contents:
    """What the rows of a part were."""

    hashes: Sequence[str]
    files: dict[str, Stamp]

    def as_dict(self) -> dict[str, Any]:
        return {"hashes": list(self.hashes), "files": self.files}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Self:
        return cls(facts["hashes"], facts["files"])

    def difference(self, source: Source) -> str | None:
        """The first row of `source` that is another than it was; None where none is."""
        known = all(os.fspath(path) in self.files for path in source.files())
        if known and all(stamp(Path(path)) == was for path, was in self.files.items()):
            return None
        seen = 0
        try:
            for (where, found), was in zip(source.contents(), self.hashes, strict=False):
                seen += 1
                if found != was:
                    return f"{where} has changed"
        except InputError as error:
            return str(error)
        return None if seen == len(self.hashes) else "it had another number of images"


def stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def content_hash(*data: bytes) -> str:
    hasher = hashlib.sha256()
    for piece in data:
        hasher.update(piece)
    return hasher.hexdigest()[:32]


def rows_digest(facts: str, labels: Iterable[int], hashes: Iterable[str]) -> str:
    """Sixteen hex digits of rows in order, and of what else decides what they are."""
    hasher = hashlib.sha256(facts.encode())
    for label, content in zip(labels, hashes, strict=True):
        hasher.update(f"{label} {content}\n".encode())
    return hasher.hexdigest()[:16]
