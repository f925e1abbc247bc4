"""Rows of metrics on disk: a file that grows, and beside it what it held before, in parts.

`metrics.jsonl` begins anew whenever it holds LIMIT_BYTES. What it held is from then on
`metrics/00000001-00020000-1b2c3d4e.jsonl.zst`: first and last step, and a checksum. Wherever two of
these files have a step, the later one's word counts from its first step on; so a process may be
killed at any moment between writing one and dropping the other.
"""

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import InputError
from common.files.atomic import write_atomically
from common.files.paths import require_file

LIMIT_BYTES = 64 * 10**6
"""Of a file that grows; a copy of the run elsewhere sends it again and again."""
NAME = re.compile(r"(\d{8,})-(\d{8,})-([0-9a-f]{8})\.jsonl\.zst")
Line = tuple[str, dict[str, Any]]


class Part(NamedTuple):
    """Rows that were moved out of the file that grows."""

    path: Path
    first: int
    last: int
    checksum: int
    """CRC-32 of the compressed bytes."""


class RowFile:
    """Appends rows, each of a later step than the one before."""

    def __init__(self, path: Path, step: int, limit: int = LIMIT_BYTES) -> None:
        """What is there of `step` and later ones is dropped.

        Raises:
            InputError: what is there of earlier steps cannot be gone on with.
            OSError: it cannot be written.
        """
        _drop_from(path, step)
        self._path = path
        self._limit = limit
        self._file = path.open("ab")

    def write(self, row: dict[str, Any]) -> None:
        """
        Raises:
            InputError: what the file holds cannot be written as a part.
            OSError: the row cannot be written.
        """
        if self._file.tell() >= self._limit:
            self._begin_anew()
        self._file.write(json.dumps(row).encode() + b"\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _begin_anew(self) -> None:
        self._file.close()
        _write_part(self._path, list(_lines(self._path, self._path.read_bytes())))
        _replace(self._path, [])
        self._file = self._path.open("ab")


def parts_folder(path: Path) -> Path:
    """Where the parts of a file of rows lie."""
    return path.with_suffix("")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl or profiles.jsonl, and of their parts, by step, in order; none where
    there are no files.

    A last line that a killed run left half-written is left out.

    Raises:
        InputError: another line is no row, or a part is damaged.
    """
    # A learner that went on from a snapshot may repeat steps: the last word counts.
    return list({row["step"]: row for row in iterate_rows(path)}.values())


def iterate_rows(path: Path) -> Iterator[dict[str, Any]]:
    """As they were written, a file at a time; of a step that two files have, the later one's.

    Raises:
        InputError: as `read_rows`.
    """
    content = _content(path)  # before the parts, into which it may move meanwhile
    for part, end in _ends(_parts(path), _first(path, content)):
        if end is None or part.first < end:
            for _, row in _before(_part_lines(part), end):
                yield row
    for _, row in _lines(path, content):
        yield row


def _parts(path: Path) -> list[Part]:
    """In order of their steps; of two with the same first one the longer was before the other."""
    found = []
    for one in parts_folder(path).glob("*.jsonl.zst"):
        if (match := NAME.fullmatch(one.name)) is not None:
            first, last, checksum = match.groups()
            found.append(Part(one, int(first), int(last), int(checksum, 16)))
    return sorted(found, key=lambda part: (part.first, -part.last))


def _ends(parts: list[Part], end: int | None) -> list[tuple[Part, int | None]]:
    """Each with the first step that a later file has, if there is one; `end` is that of the file
    that grows."""
    found = []
    for part in reversed(parts):
        found.append((part, end))
        end = part.first if end is None else min(end, part.first)
    return found[::-1]


def _first(path: Path, content: bytes) -> int | None:
    return next((row["step"] for _, row in _lines(path, content)), None)


def _before(lines: Iterable[Line], end: int | None) -> Iterator[Line]:
    return ((line, row) for line, row in lines if end is None or row["step"] < end)


def _content(path: Path) -> bytes:
    """Nothing where there is no file."""
    if not path.exists():
        return b""
    require_file(path, "rows of metrics")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _lines(path: Path, content: bytes) -> Iterator[Line]:
    """(line, row) of what is whole."""
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip() or number == len(lines):
            continue  # what follows the last newline was never finished
        try:
            row = json.loads(line)
            is_row = isinstance(row, dict) and type(row.get("step")) is int
        except (ValueError, RecursionError):
            row, is_row = {}, False
        if not is_row:
            raise InputError(
                f"{path}: line {number} is no row of metrics: {line[:40]!r}; remove that line"
            )
        yield line.decode(), row


def _part_lines(part: Part) -> Iterator[Line]:
    """Decompressed; refuses a part that is not as it was written."""
    import pyarrow as pa

    packed = _content(part.path)
    try:
        if zlib.crc32(packed) != part.checksum:
            raise OSError("its checksum is not the one in its name")
        with pa.input_stream(pa.py_buffer(packed), compression="zstd") as file:
            content = file.read()
    except OSError as error:
        raise InputError(
            f"{part.path} is damaged: {error}; put a whole copy in its place, or remove it to go "
            f"on without the rows of steps {part.first} to {part.last}"
        ) from None
    return _lines(part.path, content)


def _write_part(path: Path, lines: list[Line]) -> None:
    """Make a part of the file at `path` of some of its rows."""
    import pyarrow as pa

    if not lines:
        return
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write("".join(f"{line}\n" for line, _ in lines).encode())
    packed = sink.getvalue().to_pybytes()
    steps = [row["step"] for _, row in lines]
    name = f"{min(steps):08d}-{max(steps):08d}-{zlib.crc32(packed):08x}.jsonl.zst"
    write_atomically(parts_folder(path) / name, lambda temporary: _store(temporary, packed))


def _store(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _drop_from(path: Path, step: int) -> None:
    """Keep what is of earlier steps, and whole; each file at once, or not at all."""
    if step <= 1:
        parts, kept = [(part, 0) for part, _ in _ends(_parts(path), None)], []
    else:
        content = _content(path)
        found = _ends(_parts(path), _first(path, content))
        parts = [(part, step if end is None else min(step, end)) for part, end in found]
        kept = list(_before(_lines(path, content), step))
        if content == _joined(kept) and all(part.last < end for part, end in parts):
            return
    if path.exists():
        _replace(path, kept)
    for part, end in reversed(parts):  # a kill in between leaves what came before
        if part.first < end <= part.last:
            _write_part(path, list(_before(_part_lines(part), end)))
        if end <= part.last:
            part.path.unlink()


def _joined(lines: list[Line]) -> bytes:
    return "".join(f"{line}\n" for line, _ in lines).encode()


def _replace(path: Path, lines: list[Line]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(_joined(lines))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
