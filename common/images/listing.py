"""Which files are data, and a record of those that are not.

Hidden files, what operating systems and notebooks leave behind, pipes and devices, links that are
broken or lead back up are no data; links to folders and files are followed, at any depth.
"""

import glob
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError

SYSTEM = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
"""Names, in lower case, that systems put among a user's files; others begin with a dot."""
LARGEST = 2**30
"""Bytes of one image's file."""
EXAMPLES = 2


@dataclass
class LeftOut:
    """Files that are no data, by reason, with the first few by name."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, name: str, count: int = 1) -> None:
        self.counts[reason] += count
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append(printable(name))

    def __str__(self) -> str:
        """`3 hidden (.DS_Store, ...), 10 .txt (notes.txt, ...)`."""
        found = []
        for reason, count in sorted(self.counts.items()):
            names = self.examples[reason]
            more = ", ..." if count > len(names) else ""
            found.append(f"{count:,} {reason} ({', '.join(names)}{more})")
        return ", ".join(found)


@dataclass
class Findings:
    """What was read, what was left out, and what a user should know about either."""

    images: int = 0
    classes: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    remarks: list[str] = field(default_factory=list)

    def lines(self, name: str) -> list[str]:
        said = f"read {count(self.images, 'image')} of {count(self.classes, 'class')} in {name}"
        left_out = f"; left out: {self.left_out}" if self.left_out.counts else ""
        return [said + left_out, *self.remarks]

    def as_dict(self) -> dict[str, Any]:
        counts = dict(self.left_out.counts)
        facts = {"images": self.images, "classes": self.classes, "left_out": counts}
        return {**facts, "examples": dict(self.left_out.examples), "remarks": self.remarks}


def count(number: int, noun: str) -> str:
    plural = {"class": "classes"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"


def printable(name: str | os.PathLike[str]) -> str:
    r"""A file's name for people and JSON: bytes that are no UTF-8 and control characters as \x.."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{printable(folder)}: cannot be listed: {error.strerror or error}"
        ) from None


def files_below(
    folder: Path, left_out: LeftOut, *, root: Path | None = None
) -> Iterator[tuple[str, ...]]:
    """Regular files in a folder and below, as parts of their paths from it, in no set order.

    `root` is a folder above: links back to it, or to any folder on the way, are not followed.
    """
    above = {_identity(root)} if root else set()
    waiting: list[tuple[tuple[str, ...], frozenset[Any]]] = [((), frozenset(above))]
    while waiting:
        parts, ancestors = waiting.pop()
        here = folder.joinpath(*parts)
        on_the_way = ancestors | {_identity(here)}
        for entry in entries(here):
            name = "/".join([*parts, entry.name])
            if is_hidden(entry.name):
                left_out.add("hidden", name)
            elif is_folder(entry):
                if entry.is_symlink() and _identity(here / entry.name) in on_the_way:
                    left_out.add("linked back to a folder above", name)
                else:
                    waiting.append(((*parts, entry.name), on_the_way))
            elif not os.path.exists(entry.path):
                left_out.add("broken links", name)
            elif entry.is_file():
                yield (*parts, entry.name)
            else:
                left_out.add("not regular files", name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads nowhere is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def suffix_of(name: str) -> str:
    """The reason under which a file of another kind is left out."""
    return os.path.splitext(name)[1].lower() or "without suffix"


def read_file(path: Path) -> bytes:
    """A regular file's content; a pipe or device is never opened, as that may never end.

    Raises:
        InputError: it is missing, unreadable, no regular file or unreasonably large.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{printable(path)}: is no regular file; remove or replace it")
        if found.st_size > LARGEST:
            raise InputError(
                f"{printable(path)}: has {found.st_size / 2**30:.1f} GiB, more than one image may "
                "have; remove or replace it"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{printable(path)}: cannot be read: {reason or error}") from None


def matches(path: Path) -> list[Path]:
    """What a path of the config names: itself, or all that its *, ? and [] match."""
    if os.path.lexists(path) or not re.search(r"[*?\[]", str(path)):
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
