"""Files that survive: atomic writes, safetensors with a self-description.

Nothing here unpickles a user's file: weights are safetensors.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save, save_file
from torch import Tensor, nn

from common.backbone import Backbone, BackboneConfig, SequenceSpec
from common.errors import InputError
from common.official import Checkpoint, load
from common.plugins import make

FORMAT = "varkd-1"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Run `write` on a temporary neighbour, flush it to disk, then rename it to `path`.

    Raises:
        InputError: the disk is full or the folder cannot be written; `path` is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    except SafetensorError as error:  # safetensors wraps the operating system's error
        raise InputError(f"{path}: could not be written: {error}; free some space") from error
    finally:
        with suppress(OSError):  # never in place of what went wrong before it
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> InputError:
    full = error.errno == errno.ENOSPC
    remedy = "free some space or choose another --out" if full else "choose another --out"
    return InputError(f"{path}: could not be written: {error.strerror or error}; {remedy}")


def write_text(path: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text(text)

    write_atomically(path, write)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file; metadata values are stored as JSON."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"format": FORMAT, **{name: json.dumps(value) for name, value in metadata.items()}}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        InputError: the file is missing, truncated, or not one of ours.
    """
    try:
        with safe_open(path, "pt") as handle:
            header = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from None
    if header.pop("format", None) != FORMAT:
        raise InputError(f"{path}: no {FORMAT} header; this file was not written by varkd")
    return tensors, {name: json.loads(value) for name, value in header.items()}


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


def save_backbone(path: Path, model: Backbone, config: BackboneConfig, **extra: Any) -> None:
    """Weights with the config and spec that rebuild the module, and its digest."""
    save_backbone_state(path, model.state_dict(), config, model.spec, **extra)


def save_backbone_state(
    path: Path,
    state: Mapping[str, Tensor],
    config: BackboneConfig,
    spec: SequenceSpec,
    **extra: Any,
) -> None:
    """What `save_backbone` writes, where there is no module around the tensors."""
    metadata = {"config": config.model_dump(mode="json"), "spec": spec.as_dict(), **extra}
    save_tensors(path, state, metadata)


def is_ours(path: Path) -> bool:
    """Whether `path` is a self-describing file of ours (else it is an official checkpoint).

    Raises:
        InputError: there is no such file.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; give the path of a checkpoint")
    if path.suffix != ".safetensors":
        return False
    return _header(path).get("format") == FORMAT


def load_backbone(path: Path, dtype: torch.dtype | None = None) -> tuple[Backbone, BackboneConfig]:
    """Rebuild the module that `save_backbone` stored, on the CPU and in eval mode.

    Parameters are cast to `dtype` while they are read; buffers keep their type.
    """
    model, config, _ = _skeleton(path)
    load(model, Checkpoint(path), lambda name: name, dtype=dtype)
    return model.eval(), config


def load_head(path: Path) -> tuple[nn.Linear, SequenceSpec, BackboneConfig]:
    """Only the output head of a stored backbone, and what it belongs to.

    The other tensors are never read: a learner needs no copy of its teacher.
    """
    model, config, spec = _skeleton(path)
    name = next(name for name, module in model.named_modules() if module is model.head)
    names = {f"{name}.{part}": part for part in model.head.state_dict()}
    state = {names[name]: value for name, value in Checkpoint(path).tensors(names)}
    model.head.load_state_dict(state, assign=True)
    return model.head.requires_grad_(False), spec, config


def _skeleton(path: Path) -> tuple[Backbone, BackboneConfig, SequenceSpec]:
    """A stored backbone on the meta device, from its header alone."""
    header = _header(path)
    if "spec" not in header:
        raise InputError(f"{path}: holds no backbone; expected a file such as student.safetensors")
    spec = SequenceSpec.from_dict(json.loads(header["spec"]))
    config = make("common.backbones", json.loads(header["config"]))
    with torch.device("meta"):
        return config.build(spec), config, spec


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as handle:
            return handle.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from None


def pack(module: nn.Module, dtype: torch.dtype) -> bytes:
    """A module's state as safetensors bytes: what travels to rollout workers.

    Parameters travel in `dtype`; buffers as they are (a quantiser must stay exact).
    """
    parameters = dict(module.named_parameters())
    return save(
        {
            name: value.detach().to("cpu", dtype if name in parameters else None).contiguous()
            for name, value in module.state_dict().items()
        }
    )


def unpack(payload: bytes) -> dict[str, Tensor]:
    return load_bytes(payload)


def state_digest(module: nn.Module) -> str:
    """Sixteen hex digits of all parameters and buffers, independent of the device."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, value in sorted(module.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
