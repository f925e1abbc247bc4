"""Checkpoints in the layouts of the official repositories, read safely and lean.

`Checkpoint` knows names, shapes and types of a file without reading its values; `load` fills a
module that was built on the meta device, a few per cent of the file at a time, so that the peak
stays near the size of what is kept. Nothing but tensors is unpickled, with one exception that the
official trainers need and that cannot run code: `argparse.Namespace` (backbones.md 1.5, 2, 4.2).
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import InputError

TOP_LEVELS = ("model", "module", "state_dict")
"""Where the official samplers look, in this order, when a file is no bare state dict."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DDP and torch.compile leave on every name."""
GROUP_SHARE = 0.05
"""Part of a file that is resident beside the copies that are kept."""
SHOWN = 6

Rename = Callable[[str], str | None]
"""An official name to ours; None for entries that hold no weights."""


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
        self._mapped = True
        self._held: dict[str, Tensor] | None = None
        state = self._open()
        self.entries = {
            name: Entry(tuple(value.shape), value.dtype) for name, value in state.items()
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def tensors(
        self, names: Iterable[str], dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Private copies of the named tensors, floating ones cast to `dtype`."""
        groups = self._groups(list(names)) if self._mapped else [list(names)]
        for group in groups:
            state = self._open()  # a fresh mapping: the pages of the last one are given back
            self._held = None
            for name in group:
                value = state.pop(name)
                wanted = dtype if dtype and value.is_floating_point() else value.dtype
                copied = torch.empty(value.shape, dtype=wanted)
                yield name, copied.copy_(value)
                del value, copied
            del state

    def _groups(self, names: list[str]) -> Iterator[list[str]]:
        limit = GROUP_SHARE * sum(entry.bytes for entry in self.entries.values())
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
        if self._file.suffix == ".safetensors":
            return _plain_names(_open_safetensors(self._file))
        loaded, self._mapped = _unpickle(self._file)
        state = _plain_names(_find_state(loaded, self._file, ema=self._ema))
        if not self._mapped:
            self._held = state  # an old-style file cannot be mapped: it was read whole
        return state


def load(
    module: nn.Module,
    checkpoint: Checkpoint,
    rename: Rename,
    *,
    given: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Fill `module` (on the meta device) from an official file, strictly.

    `given` holds entries of the module that the file does not have by design. Parameters are cast
    to `dtype`; buffers keep their type.

    Raises:
        InputError: names are missing or unexpected, or shapes differ; nothing was read yet.
    """
    given = dict(given or {})
    wanted = {name: tuple(v.shape) for name, v in module.state_dict().items() if name not in given}
    source = {ours: name for name in checkpoint.entries if (ours := rename(name)) is not None}
    require_names(checkpoint.path, set(wanted), {o: source[o] for o in source})
    for ours, name in source.items():
        if checkpoint.entries[name].shape != wanted[ours]:
            raise InputError(
                f"{checkpoint.path}: {name} has shape {list(checkpoint.entries[name].shape)}, "
                f"expected {list(wanted[ours])}; check the model's sizes and the image size"
            )
    names = {name: ours for ours, name in source.items()}
    parameters = {name for name, _ in module.named_parameters()}
    cast = [name for name, ours in names.items() if ours in parameters]
    kept = [name for name, ours in names.items() if ours not in parameters]
    for chosen, wanted_dtype in ((cast, dtype), (kept, None)):
        for name, value in checkpoint.tensors(chosen, wanted_dtype):
            module.load_state_dict({names[name]: value}, strict=False, assign=True)
    module.load_state_dict(given, strict=False, assign=True)


def require_names(path: Path, wanted: set[str], found: Mapping[str, str]) -> None:
    """Refuse a file whose names differ from `wanted`; `found` maps ours to the file's.

    Raises:
        InputError: with the lists of what is missing and what is unexpected.
    """
    missing = sorted(wanted - set(found))
    unexpected = sorted(found[name] for name in set(found) - wanted)
    if missing or unexpected:
        parts = [
            f"{label} {_some(names)}"
            for label, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(
            f"{path}: not the expected weights: {'; '.join(parts)}; check the model's sizes"
        )


def ignoring(*patterns: str) -> Rename:
    """Keep official names as they are, without the entries that match a pattern."""

    def rename(name: str) -> str | None:
        return None if any(fnmatchcase(name, pattern) for pattern in patterns) else name

    return rename


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _data_file(path: Path) -> Path:
    """The file itself, or the whole state dict in an FSDP trainer's folder."""
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint; give the path of a downloaded file")
    if path.is_dir():
        inner = path / "consolidated.pth"
        if not inner.exists():
            raise InputError(f"{path}: a folder without consolidated.pth; give the file itself")
        return inner
    return path


def _unpickle(path: Path) -> tuple[Any, bool]:
    """The file's content with tensors mapped from disk, and whether that was possible."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), True
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise _unreadable(path, error) from None
        except UnpicklingError as error:
            raise _unsafe(path, error) from None
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise _unreadable(path, error) from None
        try:
            return torch.load(path, map_location="cpu", weights_only=True), False
        except UnpicklingError as error:
            raise _unsafe(path, error) from None
        except (OSError, EOFError, ValueError, KeyError, RuntimeError) as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: not a readable checkpoint ({reason}); download it again")


def _unsafe(path: Path, error: UnpicklingError) -> InputError:
    text = str(error)
    if "Unsupported global" not in text and "Unsupported class" not in text:
        return _unreadable(path, ValueError(text.splitlines()[0] if text else "damaged"))
    name = text.partition("GLOBAL ")[2].split()[0] if "GLOBAL " in text else "another object"
    return InputError(
        f"{path}: a pickle that wants {name}, which could run code: refused; save only its state "
        "dict, or convert it to safetensors"
    )


def _find_state(loaded: Any, path: Path, *, ema: bool) -> dict[str, Tensor]:
    if isinstance(loaded, dict):
        trainer = loaded.get("trainer")
        if isinstance(trainer, dict) and _is_state(trainer.get("var_wo_ddp")) and not ema:
            return trainer["var_wo_ddp"]  # VAR's own trainer
        for key in ("ema",) if ema else TOP_LEVELS:
            if _is_state(loaded.get(key)):
                return loaded[key]
        if _is_state(loaded) and not ema:
            return loaded
    keys = sorted(map(str, loaded)) if isinstance(loaded, dict) else [type(loaded).__name__]
    wanted = "ema" if ema else "a bare state dict, or one under " + ", ".join(TOP_LEVELS)
    raise InputError(f"{path}: found {_some(keys)} at the top level, expected {wanted}")


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from None


def _plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)
