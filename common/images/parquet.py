"""Images in Parquet, in the Hugging Face layout: a column of images, a column of integers.

Shape letters: N rows.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.images.classes import assign
from common.images.columns import image_column, label_column
from common.images.config import MOST_CLASSES, ImagesConfig, Split
from common.images.contents import Reading
from common.images.listing import Findings, count, files_below, printable, read_file, suffix_of
from common.images.source import EncodedImages
from common.images.splits import shards_of

RECORD_ROWS = 256
"""Rows of a Parquet file that are in memory together."""
STREAM_BYTES = 2**20
"""Read at a time from a column, which in one row group may have gigabytes."""
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, MemoryError)
"""What pyarrow raises on files that are cut or forged."""
SUFFIXES = {".parquet", ".pq"}


class ParquetImages(EncodedImages):
    """Files in sorted order; images lie in the file, or where their paths say."""

    def __init__(self, config: ImagesConfig, places: Sequence[Path], split: Split) -> None:
        self._config = config
        self.found = Findings()
        self.name = ", ".join(printable(place) for place in places)
        files = [file for place in places for file in self._shards(place, split)]
        labels, names = [], []
        for file in files:
            found, called = self._labels(file)
            labels.append(found)
            names.append(called)
        self._rows = [
            (file, np.arange(len(found))) for file, found in zip(files, labels, strict=True)
        ]
        label_N = np.concatenate(labels)
        if not len(label_N):
            raise InputError(f"{self.name}: holds no images")
        called = names[0] if all(each == names[0] for each in names) else None
        self.classes, self.label_N = assign(
            config, *self._classes(label_N, called), self.name, self.found
        )

    def _shards(self, place: Path, split: Split) -> list[Path]:
        if not place.is_dir():
            return [place]
        found, left_out = [], self.found.left_out
        for parts in files_below(place, left_out):
            if (reason := suffix_of(parts[-1])) in SUFFIXES:
                found.append(parts)
            else:
                left_out.add(reason, "/".join(parts))
        if not found:
            rest = f"; found {left_out}" if left_out.counts else ""
            raise InputError(f"{printable(place)}: holds no .parquet files{rest}")
        chosen = shards_of(place, sorted(found), split, left_out)
        return [place.joinpath(*parts) for parts in chosen]

    def _labels(self, file: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
        """Labels as they are stored, and the names that the file has for them."""
        if not file.is_file():
            raise InputError(f"{printable(file)}: is no regular file; expected Parquet")
        try:
            schema = pq.read_schema(file)
            image = image_column(schema, self._config.image_column, printable(file))
            name = label_column(schema, self._config.label_column, printable(file))
            column = pq.read_table(file, columns=[name]).column(name)
        except DAMAGE as error:
            raise _unreadable(file, error) from None
        for what, found, usual in (("images", image, "image"), ("labels", name, "label")):
            remark = f"{what} are in column {found}"
            if found != usual and remark not in self.found.remarks:
                self.found.remarks.append(remark)
        self._check(file, name, column)
        return column.to_numpy().astype(np.int64), _names(schema, name)

    def _check(self, file: Path, name: str, column: Any) -> None:
        first, where = self._config.first_label, f"{printable(file)}: column {name}"
        if column.null_count:
            raise InputError(f"{where} has missing values; remove those rows")
        if not len(column):
            return
        label_N = column.to_numpy()
        low, high = int(label_N.min()), int(label_N.max())
        if low < first:
            what = "negative values" if low < 0 else f"{low}, below images.first_label {first}"
            raise InputError(f"{where} has {what}; labels are integers from {first}")
        if high - first >= MOST_CLASSES:
            raise InputError(
                f"{where} has {high}, more than the {MOST_CLASSES:,} classes that there may be; "
                "give images.label_column another one"
            )

    def _classes(
        self, label_N: np.ndarray, called: tuple[str, ...] | None
    ) -> tuple[list[str], np.ndarray]:
        """Names of the classes, and which of them every row has.

        Raises:
            InputError: labels leave a number out, and nothing says that it is a class.
        """
        config = self._config
        row_N = label_N - config.first_label
        total = int(row_N.max()) + 1
        if called is not None and len(called) >= total and not config.first_label:
            return list(called), row_N
        if config.classes is not None and config.class_ids is None:
            total = max(total, config.classes)
        elif config.class_ids is None:
            self._require_no_gap(row_N, total)
        return [str(label + config.first_label) for label in range(total)], row_N

    def _require_no_gap(self, row_N: np.ndarray, total: int) -> None:
        there = np.bincount(row_N, minlength=total) > 0
        if there.all():
            return
        first, gaps = self._config.first_label, np.flatnonzero(~there)
        few = ", ".join(str(gap + first) for gap in gaps[:3]) + (", ..." if len(gaps) > 3 else "")
        starts = int(np.flatnonzero(there)[0])
        way = f"images.first_label={starts + first} if they start there, or " if starts else ""
        raise InputError(
            f"{self.name}: no image has label {few} ({count(len(gaps), 'label')} below the "
            f"largest, {total - 1 + first}); set {way}images.classes={total} if classes without "
            "images are meant"
        )

    def files(self) -> Sequence[Path]:
        return [file for file, _ in self._rows]

    def _encoded(self, reading: Reading) -> Iterator[tuple[str, bytes]]:
        for file, row_N in self._rows:
            reading.opens(file)
            try:
                for where, image in _read_rows(file, row_N, self._config):
                    yield where, _content(image, file.parent, where, reading)
            except DAMAGE as error:
                raise _unreadable(file, error) from None

    def _keep(self, rows: Sequence[int]) -> None:
        wanted, first, kept = np.asarray(rows, dtype=np.int64), 0, []
        for file, row_N in self._rows:
            inside = wanted[(wanted >= first) & (wanted < first + len(row_N))]
            if len(inside):
                kept.append((file, row_N[inside - first]))
            first += len(row_N)
        self._rows = kept


def _read_rows(file: Path, row_N: np.ndarray, config: ImagesConfig) -> Iterator[tuple[str, Any]]:
    """(where, image) of increasing rows of a file; row groups without any are not read."""
    with pq.ParquetFile(file, buffer_size=STREAM_BYTES) as parquet:
        name = image_column(parquet.schema_arrow, config.image_column, printable(file))
        first = 0
        for group in range(parquet.num_row_groups):
            stop = first + parquet.metadata.row_group(group).num_rows
            wanted = row_N[(row_N >= first) & (row_N < stop)]
            records = parquet.iter_batches(RECORD_ROWS, row_groups=[group], columns=[name])
            while len(wanted):
                record = next(records, None)
                if record is None:
                    raise InputError(f"{printable(file)}: ends before row {wanted[0]}")
                here = wanted[wanted < first + len(record)]
                images = record.column(name).take(pa.array(here - first)).to_pylist()
                for row, image in zip(here, images, strict=True):
                    yield f"{printable(file)}, row {row}", image
                first, wanted = first + len(record), wanted[len(here) :]
            first = stop


def _content(image: Any, folder: Path, where: str, reading: Reading) -> bytes:
    """Bytes in the row, or of the file that it names, relative to the Parquet file's folder."""
    given = image if isinstance(image, dict) else {"bytes": image}
    data, path = given.get("bytes"), given.get("path")
    if isinstance(data, str):
        data, path = None, data
    if data:
        return data
    if not path:
        raise InputError(f"{where}: holds no image, neither bytes nor a path; remove the row")
    file = folder / path
    if not file.exists():
        raise InputError(
            f"{where}: has no bytes, and its path {printable(path)} is not there (relative to "
            f"{printable(folder)}); embed the images when you write the file"
        )
    reading.opens(file)
    return read_file(file)


def _names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Class names that Hugging Face's `datasets` leaves in the schema."""
    try:
        facts = json.loads((schema.metadata or {})[b"huggingface"])
        names = facts["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(printable(name) for name in names)
    return None


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{printable(file)}: not a readable Parquet file: {error}")
