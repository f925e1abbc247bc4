"""Records at rest: what a run trained on, kept to be trained on again (docs/records.md).

A segment is an Arrow IPC file of some records, compressed, with the metadata of each beside its
batch, and a JSON file of the same name that says which leases it holds and what its digest is. One
without that was being written when its process died, and is none. Where two hold the same lease,
the later one counts: its learner had gone back to a snapshot. Free of torch.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from common.errors import InputError
from common.exchange.trajectory import GUESSES, KEPT
from common.files.atomic import write_atomically, write_text
from common.files.paths import read_json

FORMAT = "varkd-segment-1"
SEGMENT_BYTES = 2**26
"""Of compressed records in a file, about."""
OF_THE_RUN = ("teacher_seconds", "teacher_busy", "teacher_waiting", "busy.", "late", GUESSES, KEPT)
"""Beginnings of metadata that say how the run went, and nothing of the rows."""


class SegmentWriter:
    """Writes the segments of one learner rank."""

    def __init__(self, folder: Path, rank: int, most_bytes: float) -> None:
        """Of more than `most_bytes` on the disk, the oldest are removed."""
        self._folder = folder
        self._rank = rank
        self._most_bytes = most_bytes
        self._open: _Open | None = None

    @property
    def nbytes(self) -> int:
        """Compressed bytes that are in memory alone."""
        return self._open.sink.tell() if self._open else 0

    def add(self, record: pa.RecordBatch) -> None:
        """Compress one record, in memory. One with other columns begins a segment.

        Raises:
            InputError: as `flush`.
        """
        bare = record.replace_schema_metadata(None)
        if self._open is not None and not self._open.writer_schema.equals(bare.schema):
            self.flush()
        if self._open is None:
            self._open = _Open.of(bare.schema)
        self._open.add(bare, record.schema.metadata)

    def flush(self) -> None:
        """Write what is in memory as a segment.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        if self._open is None:
            return
        content, leases, rows = self._open.close()
        self._open = None
        mine = sorted(self._folder.glob(f"*-{self._rank}.arrow"))
        number = int(mine[-1].name.split("-")[0]) + 1 if mine else 0
        path = self._folder / f"{number:06d}-{self._rank}.arrow"
        facts = {"format": FORMAT, "time": time.time(), "bytes": content.size, "leases": leases}
        facts |= {"rows": rows, "blake2b": _digest(content)}
        write_atomically(path, lambda temporary: _write(temporary, content))
        write_text(path.with_suffix(".json"), json.dumps(facts))
        self._drop_oldest([*mine, path])

    def _drop_oldest(self, mine: list[Path]) -> None:
        sizes = [path.stat().st_size for path in mine]
        while len(mine) > 1 and sum(sizes) > self._most_bytes:
            mine[0].with_suffix(".json").unlink(missing_ok=True)
            mine.pop(0).unlink()
            sizes.pop(0)


@dataclass
class _Open:
    """A segment that is being made, in memory."""

    sink: pa.BufferOutputStream
    writer: Any
    writer_schema: pa.Schema
    leases: list[int]
    rows: list[int]

    @classmethod
    def of(cls, schema: pa.Schema) -> Self:
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        return cls(sink, pa.ipc.new_file(sink, schema, options=options), schema, [], [])

    def add(self, bare: pa.RecordBatch, metadata: dict[bytes, bytes]) -> None:
        self.writer.write_batch(bare, custom_metadata=metadata)
        self.leases.append(int(metadata[b"lease"]))
        self.rows.append(bare.num_rows)

    def close(self) -> tuple[pa.Buffer, list[int], list[int]]:
        self.writer.close()
        return self.sink.getvalue(), self.leases, self.rows


class Segments:
    """The records of a folder, by the numbers of their leases."""

    def __init__(self, folder: Path) -> None:
        """Reads what the segments say of themselves, and none of them yet.

        Raises:
            InputError: there are none, or one is damaged.
        """
        self._folder = folder
        found = [_facts(path) for path in sorted(folder.glob("*.json"))]
        if not found:
            raise InputError(
                f"{folder}: no kept rollouts are there; give the rollouts folder of a run that had "
                "buffer.keep_gb set"
            )
        self._places: dict[int, tuple[Path, int]] = {}
        self._digests = {path: facts["blake2b"] for path, facts in found}
        for path, facts in sorted(found, key=lambda of: of[1]["time"]):
            self._places |= {lease: (path, at) for at, lease in enumerate(facts["leases"])}
        self.leases = sorted(self._places)
        self._rows = {rows for _, facts in found for rows in facts["rows"]}
        self._opened = lru_cache(maxsize=2)(self._verified)

    def record(self, lease: int) -> pa.RecordBatch:
        """The record of one of `leases`, as it was trained.

        Raises:
            InputError: its segment is damaged.
        """
        path, at = self._places[lease]
        reader = self._opened(path)
        try:
            found = reader.get_batch_with_custom_metadata(at)
        except (pa.ArrowInvalid, OSError, IndexError) as error:
            raise _damaged(path, str(error)) from None
        return found.batch.replace_schema_metadata(dict(found.custom_metadata))

    def require(self, lease_size: int) -> None:
        """Refuse to answer leases of another size.

        Raises:
            InputError: the records have another number of rows.
        """
        if self._rows != {lease_size}:
            sizes = " and ".join(map(str, sorted(self._rows)))
            raise InputError(
                f"{self._folder}: its records have {sizes} sequences, but rollout.batch_size is "
                f"{lease_size}; set it as it was when they were kept"
            )

    def digest(self) -> str:
        """Sixteen hex digits of all that is there."""
        return hashlib.blake2b(
            "".join(self._digests[path] for path in sorted(self._digests)).encode(), digest_size=8
        ).hexdigest()

    def _verified(self, path: Path) -> Any:
        try:
            content = pa.memory_map(str(path)).read_buffer()
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from None
        if _digest(content) != self._digests[path]:
            raise _damaged(path, "other contents than were written")
        return pa.ipc.open_file(content)


def _facts(path: Path) -> tuple[Path, dict[str, Any]]:
    """(the Arrow file, what is said of it)"""
    facts = read_json(path, "what a segment of rollouts holds")
    try:
        numbers = [*facts["leases"], *facts["rows"]]
        is_ours = facts["format"] == FORMAT and all(isinstance(n, int) for n in numbers)
        is_ours = is_ours and isinstance(facts["time"] + facts["bytes"], float | int)
        is_ours = is_ours and isinstance(facts["blake2b"], str)
    except (KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise _damaged(path, "no facts of a segment of ours")
    return path.with_suffix(".arrow"), facts


def _digest(content: pa.Buffer) -> str:
    return hashlib.blake2b(memoryview(content), digest_size=16).hexdigest()


def _write(path: Path, content: pa.Buffer) -> None:
    with path.open("wb") as file:
        file.write(memoryview(content))


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} is damaged: {what}; remove it with its .json or .arrow file to train on the others"
    )


def renumbered(record: pa.RecordBatch, facts: dict[str, str]) -> pa.RecordBatch:
    """The same rows as the answer to another lease. They do not go stale: `oldest` is -1."""
    kept: Iterator[tuple[bytes, bytes]] = iter(record.schema.metadata.items())
    metadata = {key: value for key, value in kept if not key.decode().startswith(OF_THE_RUN)}
    return record.replace_schema_metadata(
        {**metadata, **{k.encode(): v.encode() for k, v in {**facts, "oldest": "-1"}.items()}}
    )
