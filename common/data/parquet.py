"""Images in Parquet, in the Hugging Face layout."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from common.data.config import ImagesConfig
from common.data.source import EncodedImages, require_classes
from common.errors import InputError

RECORD_ROWS = 256
"""Rows of a Parquet file that are in memory together."""


class ParquetImages(EncodedImages):
    """Columns `image: struct<bytes, path>` and `label`, in one file or a folder of files."""

    def __init__(self, config: ImagesConfig, path: Path) -> None:
        self._config = config
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: holds no .parquet files")
        labels = [self._labels(file) for file in files]
        self._rows = [
            (file, np.arange(len(found))) for file, found in zip(files, labels, strict=True)
        ]
        self.label_N = torch.from_numpy(np.concatenate(labels))
        if not len(self.label_N):
            raise InputError(f"{path}: holds no images")
        classes = int(self.label_N.max()) + 1
        if config.classes is not None and classes <= config.classes:
            classes = config.classes  # the last ones may have no image in this split
        self.classes = tuple(str(label) for label in range(classes))
        self.name = str(path)
        require_classes(config, classes, self.name)

    def _encoded(self) -> Iterator[tuple[str, bytes]]:
        for file, row_N in self._rows:
            try:
                yield from _read_rows(file, row_N)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{file}: not a readable Parquet file: {error}") from None

    def _keep(self, rows: Sequence[int]) -> None:
        wanted, first, kept = np.asarray(rows, dtype=np.int64), 0, []
        for file, row_N in self._rows:
            inside = wanted[(wanted >= first) & (wanted < first + len(row_N))]
            if len(inside):
                kept.append((file, row_N[inside - first]))
            first += len(row_N)
        self._rows = kept

    def _labels(self, file: Path) -> np.ndarray:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file}: not a readable Parquet file: {error}") from None
        image = schema.field("image").type if "image" in schema.names else None
        if image is None or not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
            raise InputError(f"{file}: no column image: struct<bytes, path>; found {schema.names}")
        if "label" not in schema.names or not pa.types.is_integer(schema.field("label").type):
            raise InputError(f"{file}: no integer column label; found {schema.names}")
        label = pq.read_table(file, columns=["label"]).column("label")
        if label.null_count or (len(label) and min(label.to_numpy()) < 0):
            raise InputError(f"{file}: column label has missing or negative values")
        return label.to_numpy().astype(np.int64)


def _read_rows(file: Path, row_N: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """(where, bytes) of increasing rows of a file; row groups without any are not read."""
    with pq.ParquetFile(file) as parquet:
        first = 0
        for group in range(parquet.num_row_groups):
            stop = first + parquet.metadata.row_group(group).num_rows
            wanted = row_N[(row_N >= first) & (row_N < stop)]
            records = parquet.iter_batches(RECORD_ROWS, row_groups=[group], columns=["image.bytes"])
            while len(wanted):
                record = next(records)
                here = wanted[wanted < first + len(record)]
                encoded = record.column("image").field("bytes").take(pa.array(here - first))
                for row, data in zip(here, encoded.to_pylist(), strict=True):
                    yield f"{file}, row {row}", data or b"" or b""
                first, wanted = first + len(record), wanted[len(here) :]
            first = stop
