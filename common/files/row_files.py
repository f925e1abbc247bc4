"""Files of rows, by torch.distributed.checkpoint.

It stores them as safetensors, of which every header says in JSON where in their tensors the rows
lie. Its own format keeps that in a pickle, which it follows without a look; nothing here does. No
process asks another one: each writes, and reads, for itself (`no_dist`).

To be imported where rows are stored or read: it imports for most of a second.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from common.files.rows import Rows, own_rows
from common.files.sealed import damaged

SUFFIX = ".safetensors"


class _Saving(DefaultSavePlanner):
    """Plans to store rows as the parts of tensors that they are."""

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._rows = rows

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(name, rows) for name, rows in self._rows.items()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self._rows[index.fqn].value.contiguous()


class _Loading(DefaultLoadPlanner):
    """Plans to read rows, whatever parts they were stored in."""

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._rows = rows

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items = []
        for name, rows in self._rows.items():
            stored = self.metadata.state_dict_metadata[name]
            assert isinstance(stored, TensorStorageMetadata)
            items += create_read_items_for_chunk_list(name, stored, [_chunk(rows)])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._rows[index.fqn].value


def write_rows(
    folder: Path, names: Sequence[str], rows: Mapping[str, Rows], numbers: dict[str, int]
) -> None:
    """Store `rows`, which are on the CPU, in files `names` of `folder`; the numbers say in which,
    counted from 1. A file's bytes are put together in memory, where no other thread gets on
    meanwhile: many files are better than large ones.

    Raises:
        OSError, RuntimeError, SafetensorError: they could not be written whole.
    """
    own = folder / f"{names[0]}.tmp"  # the writer names its files, and every process's the same
    shutil.rmtree(own, ignore_errors=True)
    writer = HuggingFaceStorageWriter(str(own), numbers, save_distributed=True)
    writer.per_thread_copy_ahead = 0  # else it waits for a GPU, the first one, by this thread
    values = {name: each.value for name, each in rows.items()}
    with _by_itself():
        save(values, storage_writer=writer, planner=_Saving(rows), no_dist=True)
    for path, name in zip(sorted(own.iterdir()), names, strict=True):
        path.replace(folder / name)
    own.rmdir()


def read_rows(
    folder: Path, names: Sequence[str], wholes: Mapping[str, Tensor], own: tuple[int, int]
) -> dict[str, Rows]:
    """What process `own[0]` of `own[1]` has of tensors that are like `wholes`, from the files
    `names` of `folder`. No other rows are read.

    Raises:
        InputError: the files are not those of these tensors, or not all.
    """
    if others := {path.name for path in folder.glob(f"*{SUFFIX}")} - set(names):
        raise damaged(folder, f"{min(others)} does not belong to it")
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata()
        _require_types(folder, stored.storage_data, wholes)
        for name, whole in wholes.items():
            _require_rows(folder, name, whole, stored.state_dict_metadata.get(name))
        rows = {name: _empty(whole, own) for name, whole in wholes.items()}
        values = {name: each.value for name, each in rows.items()}
        reader = HuggingFaceStorageReader(str(folder))
        with _by_itself():
            load(values, storage_reader=reader, planner=_Loading(rows), no_dist=True)
    except (OSError, SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(folder, str(error)) from None
    return rows


def _empty(whole: Tensor, own: tuple[int, int]) -> Rows:
    count = len(whole)
    span = own_rows(count, *own)
    value = torch.empty(span.stop - span.start, *whole.shape[1:], dtype=whole.dtype)
    return Rows(value, span.start, count)


def _require_types(folder: Path, stored: Any, wholes: Mapping[str, Tensor]) -> None:
    for index, info in stored.items():
        if index.fqn in wholes and info.dtype != wholes[index.fqn].dtype:
            expected = wholes[index.fqn].dtype
            raise damaged(folder, f"{index.fqn} is {info.dtype}, not {expected}")


def _require_rows(folder: Path, name: str, whole: Tensor, stored: Any) -> None:
    """All of them, each once: what is nowhere would not be read, and nobody would be told."""
    chunks = stored.chunks if isinstance(stored, TensorStorageMetadata) else []
    spans, seen = [], 0
    for offsets, sizes in sorted((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks):
        if sizes[1:] != whole.shape[1:] or any(offsets[1:]):
            shape = f"{list(sizes)} from {list(offsets)} on"
            raise damaged(folder, f"{name} has {shape}, which is no part of {list(whole.shape)}")
        if sizes[0]:
            spans.append(f"{offsets[0]}:{offsets[0] + sizes[0]}")
            seen = seen + sizes[0] if offsets[0] == seen else -1
    if seen != len(whole):
        raise damaged(folder, f"{name} has rows {', '.join(spans) or 'nowhere'} of {len(whole)}")


def _write_item(name: str, rows: Rows) -> WriteItem:
    chunk = _chunk(rows)
    properties = TensorProperties.create_from_tensor(rows.value)
    data = TensorWriteData(chunk=chunk, properties=properties, size=rows.shape)
    return WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=data)


def _chunk(rows: Rows) -> ChunkStorageMetadata:
    offsets = torch.Size([rows.first, *[0] * (rows.value.dim() - 1)])
    return ChunkStorageMetadata(offsets, rows.value.shape)


@contextmanager
def _by_itself() -> Iterator[None]:
    """Not told that no others are asked, and with errors as they were, of which it makes one that
    is no Exception."""
    words = "torch.distributed is disabled, unavailable or uninitialized"
    warnings.filterwarnings("ignore", message=words)
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
