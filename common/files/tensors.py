"""Safetensors with a self-description; nothing of a user's file is unpickled."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import InputError
from common.files.atomic import write_atomically
from common.files.official import FORMAT, Checkpoint
from common.files.paths import require_file, shortened


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file; metadata values are stored as JSON."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"format": FORMAT, **{name: json.dumps(value) for name, value in metadata.items()}}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        InputError: the file is missing, truncated, or not one of ours, or a number is not finite.
    """
    header = _header(path)
    if header.pop("format", None) != FORMAT:
        raise InputError(f"{path}: no {FORMAT} header; this file was not written by varkd")
    with reading_header(path):
        metadata = {name: json.loads(value) for name, value in header.items()}
    checkpoint = Checkpoint(path)
    return dict(checkpoint.tensors(checkpoint.entries)), metadata


@contextmanager
def reading_header(path: Path) -> Iterator[None]:
    """Makes one sentence of whatever a foreign or damaged header makes fail.

    Raises:
        InputError: names `path` and the reason.
    """
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as e:
        absent = f"no {e}" if isinstance(e, KeyError) else str(e) or type(e).__name__
        raise InputError(
            f"{path}: the header is damaged or another program's ({shortened(absent)}); make the "
            "file again"
        ) from None


def fill(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give `module`, which may be on the meta device, the tensors that `path` held.

    Raises:
        InputError: other names, shapes or kinds of numbers than the module's.
    """
    own = module.state_dict()
    expected, found = _kinds(own), _kinds(tensors)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"{path}: {name} is {found.get(name, 'absent')}, but the header means "
                f"{expected.get(name, 'nothing of this name')}; make the file again"
            )
    cast = {name: value.to(own[name].dtype) for name, value in tensors.items()}
    module.load_state_dict(cast, assign=True)


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {
        name: f"{list(value.shape)} {'' if value.is_floating_point() else 'whole '}numbers"
        for name, value in tensors.items()
    }


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save_tensors` wrote beside the tensors, without reading them.

    Raises:
        InputError: as `load_tensors`, but for damage beyond the header.
    """
    header = _header(path)
    if header.pop("format", None) != FORMAT:
        raise InputError(f"{path}: no {FORMAT} header; this file was not written by varkd")
    try:
        return {name: json.loads(value) for name, value in header.items()}
    except ValueError as error:
        raise InputError(f"{path}: its header is damaged: {error}; make it again") from None


def _header(path: Path) -> dict[str, str]:
    require_file(path, "a safetensors file")
    try:
        with safe_open(path, "pt") as handle:
            return handle.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from None


def state_digest(module: nn.Module) -> str:
    """Sixteen hex digits of all parameters and buffers, independent of the device."""
    return tensors_digest(module.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits of names and numbers."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, value in sorted(tensors.items()):
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
