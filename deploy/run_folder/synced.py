"""What of a folder is at a URL as well, as the folder remembers it between two commands."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from common.errors import InputError
from common.files.atomic import write_text
from common.files.paths import read_json
from common.files.sealed import Part


class Synced:
    """Names, times and sizes of files that are as they are there."""

    def __init__(self, root: Path, url: str) -> None:
        """Reads what was kept; nothing is known where that was damaged, or the folder was moved."""
        digest = hashlib.blake2b(f"{url} {root}".encode(), digest_size=4).hexdigest()
        self._path = root / f".copied-{digest}.json"
        self.folder = secrets.token_hex(8)
        """The number by which the folder is known there."""
        self.files: dict[str, tuple[int, Part]] = {}
        """By name: when it was changed last here (in ns), and how it is there."""
        self._is_changed = False
        with suppress(OSError, InputError, ValueError, KeyError, TypeError, AttributeError):
            found = read_json(self._path, "what was copied")
            files = {n: (at, Part(n, size, dig)) for n, (at, size, dig) in found["files"].items()}
            self.folder, self.files = str(found["folder"]), files

    def has(self, name: str, path: Path) -> bool:
        """Whether a file is as it is there."""
        at, part = self.files.get(name, (0, None))
        if part is None:
            return False
        with suppress(OSError):
            found = path.stat()
            return (found.st_mtime_ns, found.st_size) == (at, part.bytes)
        return False

    def part(self, name: str) -> Part | None:
        """How it is there."""
        return self.files[name][1] if name in self.files else None

    def note(self, part: Part, found: os.stat_result | None) -> None:
        """It is there; `found` is how it lies here, if it does."""
        self.files[part.name] = found.st_mtime_ns if found else 0, part
        self._is_changed = True

    def forget(self, name: str) -> None:
        """It is there no more."""
        self._is_changed |= self.files.pop(name, None) is not None

    def gone(self, here: Mapping[str, Path]) -> list[str]:
        """What is there still and was removed here."""
        return [name for name in self.files if name not in here]

    def save(self) -> None:
        """
        Raises:
            InputError: the folder cannot be written.
        """
        if self._is_changed:
            self.register()

    def register(self) -> None:
        """As `save`, in any case: before the number of the folder is told to anybody."""
        files = {name: (at, p.bytes, p.blake2b) for name, (at, p) in self.files.items()}
        write_text(self._path, json.dumps({"folder": self.folder, "files": files}))
        self._is_changed = False
