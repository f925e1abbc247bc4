"""Tensors of which every process of several holds some rows, in memory and on disk.

torch.distributed.checkpoint is not used: it keeps what lies where in a pickle (`.metadata`), which
it follows without a look, and nothing of a user's path is unpickled here beyond tensors. So every
process writes a safetensors file of its own, and what they belong to says in which order.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import InputError

KEY, SHAPE, TYPE = "rows of", "shape", "type"
"""What stands in the place of a tensor whose rows lie elsewhere."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Neighbouring rows (dimension 0) of a tensor; those of all processes, one after the other, are
    all of it."""

    value: Tensor
    count: int
    """Rows of the whole tensor."""


class StoredRows:
    """A whole tensor on disk: `stored[first:last]` reads these rows, and no others."""

    def __init__(self, place: Mapping[str, Any], files: Sequence[Path]) -> None:
        """`place` is what `without_rows` left."""
        self._key: str = place[KEY]
        self._files = files
        self.shape = torch.Size(place[SHAPE])
        self.dtype: torch.dtype = getattr(torch, place[TYPE])

    def __getitem__(self, rows: slice) -> Tensor:
        """A tensor of its own.

        Raises:
            InputError: the files do not have them.
        """
        first, last, _ = rows.indices(self.shape[0])
        found, seen = [torch.empty(0, *self.shape[1:], dtype=self.dtype)], 0
        for path in self._files:
            with _opened(path) as file:
                if self._key not in file.keys():  # noqa: SIM118 - it is no mapping
                    continue
                part = file.get_slice(self._key)
                count = part.get_shape()[0]
                low, high = max(first - seen, 0), min(last - seen, count)
                if low < high:
                    found.append(part[low:high])
                seen += count
        if seen != self.shape[0] or any(part.dtype != self.dtype for part in found):
            folder = self._files[0].parent if self._files else Path()
            raise InputError(f"{folder} is damaged: {self._key} has {seen} rows")
        return torch.cat(found)


def without_rows(value: Any, found: dict[str, Tensor], name: str = "") -> Any:
    """`value` with all `Rows` in it, however nested, moved to `found`."""
    if isinstance(value, Rows):
        found[name] = value.value
        shape = [value.count, *value.value.shape[1:]]
        return {KEY: name, SHAPE: shape, TYPE: str(value.value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {key: without_rows(inner, found, f"{name}/{key}") for key, inner in value.items()}
    return value


def with_rows(value: Any, files: Sequence[Path], *, joined: bool) -> Any:
    """The reverse: a `StoredRows`, or all of it, in every place.

    Raises:
        InputError: the files do not have what belongs there.
    """
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {KEY, SHAPE, TYPE}:
        stored = StoredRows(value, files)
        return stored[:] if joined else stored
    return {key: with_rows(inner, files, joined=joined) for key, inner in value.items()}


def write_rows(path: Path, rows: Mapping[str, Tensor]) -> None:
    """Raises OSError or SafetensorError, as `save_file`."""
    path.touch()
    mode = path.stat().st_mode & 0o777  # as the umask has it; safetensors lets its owner alone read
    save_file({name: value.contiguous() for name, value in rows.items() if len(value)}, path)
    path.chmod(mode)


@contextmanager
def _opened(path: Path) -> Any:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
