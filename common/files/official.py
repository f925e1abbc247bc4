"""Checkpoints in the layouts of the official repositories, read safely and lean.

`Checkpoint` knows names, shapes and types of a file without reading its values, which are then
read a few per cent of the file at a time, so that the peak stays near the size of what is kept
(common/files/loading.py). Nothing but tensors is unpickled (common/files/pickled.py).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import InputError
from common.files.paths import require_file, shortened
from common.files.pickled import follow, inspect
from common.files.wrappers import plain_names
from common.finite import is_finite

TOP_LEVELS = ("model", "module", "state_dict")
"""Where the official samplers look, in this order, when a file is no bare state dict."""
TRAINER, TRAINER_AVERAGE = "var_wo_ddp", "ema_parameters"
"""Where VAR's own trainer has weights, under `trainer`; the average is Distilled Decoding's."""
GROUP_SHARE = 0.05
"""Part of a file that is resident beside the copies that are kept."""
GROUP_BYTES = 2**24
"""What is too little to be given back: opening the file anew takes longer."""
SHOWN = 6
FORMAT = "varkd-1"
"""What our own safetensors files say in their header."""
COMPUTED = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that stay as they are; what else a file has becomes float32."""
NOT_FINITE = "values that are not finite"


@dataclass(frozen=True)
class Entry:
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


class Checkpoint:
    """One official file (or FSDP folder): `entries` by name, without the wrappers' prefixes."""

    def __init__(self, path: Path, *, ema: bool = False) -> None:
        """Open `path`; `ema` asks for the averaged weights of a trainer's file.

        Raises:
            InputError: missing, truncated, unsafe to unpickle, or no state dict where the official
                samplers look.
        """
        self.path = path
        self._file = _data_file(path)
        self._ema = ema
        self._is_safetensors = self._file.suffix == ".safetensors"
        self._mapped = self._is_safetensors or inspect(self._file)
        self._held: dict[str, Tensor] | None = None
        state = self._open()
        self.entries = {
            name: Entry(tuple(value.shape), value.dtype) for name, value in state.items()
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def tensors(
        self, names: Iterable[str], dtype: torch.dtype | None = None, *, finite: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Private copies of the named tensors, floating ones cast to `dtype`.

        Raises:
            InputError: one holds a NaN or an infinity, before or after the cast, unless `finite`
                is false; or is larger than the whole file.
        """
        groups = self._groups(list(names)) if self._mapped else [list(names)]
        for group in groups:
            state = self._open()  # a fresh mapping: the pages of the last one are given back
            self._held = None
            for name in group:
                self._require_stored(name)
                value = state.pop(name)
                wanted = dtype if dtype and value.is_floating_point() else value.dtype
                copied = torch.empty(value.shape, dtype=wanted)
                copied.copy_(value)
                if finite and not is_finite(copied):
                    held = f"values that do not fit {wanted}" if is_finite(value) else NOT_FINITE
                    raise InputError(f"{self.path}: {name} holds {held}; choose another file")
                yield name, copied
                del value, copied
            del state

    def _require_stored(self, name: str) -> None:
        """Strides of 0 make anything out of one number."""
        size, stored = self.entries[name].bytes, self._file.stat().st_size
        if size > stored:
            raise InputError(
                f"{self.path}: {name} claims {size} bytes, but the file has {stored}; expected "
                "weights that are stored one by one"
            )

    def _groups(self, names: list[str]) -> Iterator[list[str]]:
        whole = sum(entry.bytes for entry in self.entries.values())
        limit = max(GROUP_SHARE * whole, GROUP_BYTES)
        group: list[str] = []
        size = 0
        for name in names:
            group.append(name)
            size += self.entries[name].bytes
            if size >= limit:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _open(self) -> dict[str, Tensor]:
        if self._held is not None:
            return self._held
        if self._is_safetensors:
            state, is_ours = _open_safetensors(self._file)
            if is_ours and self._ema:
                raise InputError(
                    f"{self.path}: a file of varkd holds one set of weights, so there is no "
                    "average beside it; drop weights_ema, or choose student_ema.safetensors"
                )
            if is_ours:
                return state
            return plain_names(_section(state, self._file, ema=self._ema), self._file)
        loaded = follow(self._file, mapped=self._mapped)
        state = plain_names(_find_state(loaded, self._file, ema=self._ema), self._file)
        if not self._mapped:
            self._held = state  # an old-style file was read whole
        return state


def some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _data_file(path: Path) -> Path:
    """The file itself, or the whole state dict in an FSDP trainer's folder."""
    if path.is_dir():
        inner = path / "consolidated.pth"
        if not inner.exists():
            raise InputError(f"{path}: a folder without consolidated.pth; give the file itself")
        return inner
    require_file(path, "a checkpoint")
    return path


def _find_state(loaded: Any, path: Path, *, ema: bool) -> dict[str, Tensor]:
    if isinstance(loaded, dict):
        trainer = loaded.get("trainer")
        own = TRAINER_AVERAGE if ema else TRAINER
        if isinstance(trainer, dict) and _is_state(trainer.get(own)):
            return trainer[own]
        for key in ("ema",) if ema else TOP_LEVELS:
            if _is_state(loaded.get(key)):
                return loaded[key]
        if _is_state(loaded) and not ema:
            return loaded
    keys = [type(loaded).__name__]
    if isinstance(loaded, dict):
        keys = sorted(shortened(k) for k in loaded if isinstance(k, str)) or ["nothing by name"]
    wanted = "ema" if ema else "a bare state dict, or one under " + ", ".join(TOP_LEVELS)
    raise InputError(f"{path}: found {some(keys)} at the top level, expected {wanted}")


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], bool]:
    """All tensors, mapped from disk, and whether the file describes itself as ours."""
    try:
        with safe_open(path, "pt") as handle:
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return state, (handle.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from None


def _section(state: dict[str, Tensor], path: Path, *, ema: bool) -> dict[str, Tensor]:
    """The part of a flat file that is meant, where names begin with a trainer's top level."""
    heads = {name.partition(".")[0] for name in state}
    if ema and "ema" not in heads:
        raise InputError(
            f"{path}: weights_ema asks for averaged weights, but no name begins with ema.; drop "
            "weights_ema, or choose a file that has them"
        )
    if "ema" in heads and heads <= {"ema", *TOP_LEVELS}:
        wanted = "ema" if ema else next(key for key in TOP_LEVELS if key in heads)
    elif ema:
        wanted = "ema"
    else:
        return state
    return {n.partition(".")[2]: v for n, v in state.items() if n.startswith(f"{wanted}.")}
