"""Files that survive: atomic writes, safetensors with a self-description.

Nothing here unpickles a user's file: weights are safetensors.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save, save_file
from torch import Tensor, nn

from common.backbone import Backbone, BackboneConfig, SequenceSpec
from common.errors import InputError
from common.loading import below, load
from common.official import FORMAT, Checkpoint
from common.paths import require_file
from common.plugins import make
from common.toml_tree import shortened


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Run `write` on a temporary neighbour, flush it to disk, then rename it to `path`.

    Raises:
        InputError: the disk is full or the folder cannot be written; `path` is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # as the umask has it
        write(temporary)
        temporary.chmod(mode)  # safetensors lets nobody but the owner read
        _flush(temporary)
        temporary.replace(path)
        with suppress(OSError):  # the file is there; not every file system flushes folders
            _flush(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    except SafetensorError as error:  # safetensors wraps the operating system's error
        raise InputError(f"{path}: could not be written: {error}; free some space") from error
    finally:
        with suppress(OSError):  # never in place of what went wrong before it
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file's contents, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError) -> InputError:
    full = error.errno == errno.ENOSPC
    remedy = "free some space or choose another --out" if full else "choose another --out"
    return InputError(f"{path}: could not be written: {error.strerror or error}; {remedy}")


def write_text(path: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


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
    if path.is_dir():
        return False
    require_file(path, "a checkpoint")
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


def describe(path: Path) -> tuple[SequenceSpec, BackboneConfig]:
    """What a stored backbone is, from its header alone."""
    _, config, spec = _skeleton(path)
    return spec, config


def load_head(path: Path) -> tuple[nn.Linear, SequenceSpec, BackboneConfig]:
    """Only the output head of a stored backbone, in float32, and what it belongs to.

    The other tensors are never read: a learner needs no copy of its teacher.
    """
    model, config, spec = _skeleton(path)
    name = next(name for name, module in model.named_modules() if module is model.head)
    load(model.head, Checkpoint(path), below(name), dtype=torch.float32)
    return model.head.requires_grad_(False), spec, config


def _skeleton(path: Path) -> tuple[Backbone, BackboneConfig, SequenceSpec]:
    """A stored backbone on the meta device, from its header alone."""
    header = _header(path)
    if "spec" not in header:
        raise InputError(f"{path}: holds no backbone; expected a file such as student.safetensors")
    with reading_header(path), torch.device("meta"):
        spec = SequenceSpec.from_dict(json.loads(header["spec"]))
        config: BackboneConfig = make("common.backbones", json.loads(header["config"]))
        return config.build(spec), config, spec


def _header(path: Path) -> dict[str, str]:
    require_file(path, "a safetensors file")
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
