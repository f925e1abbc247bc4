"""Tensors of which every process of several holds some rows.

What is stored of them beside all else is their name, shape and type; torch.distributed.checkpoint
stores the rows (common/files/row_files.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError

PLACE, SHAPE, TYPE = "rows of", "shape", "type"
"""What stands in the place of a tensor whose rows lie elsewhere."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Neighbouring rows (dimension 0) of a tensor."""

    value: Tensor
    first: int
    """The first one's number, counted from 0."""
    count: int
    """Rows of the whole tensor."""

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor."""
        return torch.Size([self.count, *self.value.shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype


def row_files(name: str = "common.files.row_files") -> ModuleType:
    """That module, which imports for long.

    Raises:
        InputError: this torch cannot store rows so.
    """
    try:
        return import_module(name)
    except ImportError:
        raise InputError(
            f"the torch.distributed.checkpoint of torch {torch.__version__} has no safetensors, in "
            "which learner.parallel=fsdp stores its snapshots; install a newer one (2.13 does)"
        ) from None


def own_rows(count: int, part: int, parts: int) -> slice:
    """Those of `count` that one of several processes holds, counted from 0, as FSDP2 divides them:
    the last ones may have fewer, or none."""
    each = -(-count // parts)
    return slice(min(count, part * each), min(count, (part + 1) * each))


def shelved(rows: Mapping[str, Rows], parts: int, most: int) -> dict[str, int]:
    """Which of its files, counted from 1, each of several processes writes a tensor's rows to; the
    same for all of them. One has `most` bytes, or a single tensor's rows, or less."""
    numbers, number, room = {}, 1, most
    for name, each in rows.items():
        share = -(-each.count // parts) * each.shape[1:].numel() * each.dtype.itemsize
        if share > room and room < most:
            number, room = number + 1, most
        numbers[name] = number
        room -= share
    return numbers


def without_rows(value: Any, found: dict[str, Rows], name: str = "") -> Any:
    """`value` with all `Rows` in it, however nested, moved to `found` by their dotted names."""
    if isinstance(value, Rows):
        found[name] = value
        dtype = str(value.dtype).removeprefix("torch.")
        return {PLACE: name, SHAPE: list(value.shape), TYPE: dtype}
    if isinstance(value, Mapping):
        before = f"{name}." if name else ""
        return {key: without_rows(inner, found, f"{before}{key}") for key, inner in value.items()}
    return value


def places(value: Any) -> dict[str, Tensor]:
    """By name, what `without_rows` took from `value`: whole tensors without numbers ("meta")."""
    if not isinstance(value, Mapping):
        return {}
    if value.keys() == {PLACE, SHAPE, TYPE}:
        dtype = getattr(torch, value[TYPE])
        return {value[PLACE]: torch.empty(value[SHAPE], dtype=dtype, device="meta")}
    return {name: whole for inner in value.values() for name, whole in places(inner).items()}


def with_rows(value: Any, found: Mapping[str, Rows], *, joined: bool) -> Any:
    """`value` with what `found` has in every place; if `joined`, these rows are all of a tensor and
    stand there as such."""
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {PLACE, SHAPE, TYPE}:
        rows = found[value[PLACE]]
        return rows.value if joined else rows
    return {key: with_rows(inner, found, joined=joined) for key, inner in value.items()}
