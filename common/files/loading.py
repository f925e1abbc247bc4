"""Modules filled from checkpoints, strictly and without a second copy of anything."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.files.official import COMPUTED, Checkpoint, some

Rename = Callable[[str], str | None]
"""An official name to ours; None for entries that hold no weights."""


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
    to `dtype`; buffers have the type that the module gives them.

    Raises:
        InputError: names are missing or unexpected, shapes differ, or numbers are integers; nothing
            was read yet. Or a value is not finite.
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
    for wanted_dtype, chosen in _by_dtype(module, checkpoint, source, dtype).items():
        for name, value in checkpoint.tensors(chosen, wanted_dtype):
            given[names[name]] = value
    module.load_state_dict(given, strict=False, assign=True)  # the tensors themselves


def _by_dtype(
    module: nn.Module, checkpoint: Checkpoint, source: Mapping[str, str], dtype: torch.dtype | None
) -> dict[torch.dtype | None, list[str]]:
    """Official names by the type that they are to have; None where the file's own stays."""
    own, parameters = module.state_dict(), {name for name, _ in module.named_parameters()}
    groups: dict[torch.dtype | None, list[str]] = defaultdict(list)
    for ours, name in source.items():
        stored = checkpoint.entries[name].dtype
        if stored.is_floating_point != own[ours].is_floating_point():
            raise InputError(
                f"{checkpoint.path}: {name} is {stored}, expected {own[ours].dtype}; choose a file "
                "that is not quantised"
            )
        wanted_dtype = dtype or (None if stored in COMPUTED else torch.float32)
        groups[wanted_dtype if ours in parameters else own[ours].dtype].append(name)
    return groups


def require_names(path: Path, wanted: set[str], found: Mapping[str, str]) -> None:
    """Refuse a file whose names differ from `wanted`; `found` maps ours to the file's.

    Raises:
        InputError: with the lists of what is missing and what is unexpected.
    """
    missing = sorted(wanted - set(found))
    unexpected = sorted(found[name] for name in set(found) - wanted)
    if missing or unexpected:
        parts = [
            f"{label} {some(names)}"
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


def below(prefix: str) -> Rename:
    """Only the entries of the submodule `prefix`."""

    def rename(name: str) -> str | None:
        return name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else None

    return rename
