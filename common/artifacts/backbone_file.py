"""Files that survive: atomic writes, safetensors with a self-description.

Nothing here unpickles a user's file: weights are safetensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.config.plugins import make
from common.errors import InputError
from common.files.loading import below, load
from common.files.official import FORMAT, Checkpoint
from common.files.paths import require_file
from common.files.tensors import _header, reading_header, save_tensors
from common.models.backbone import Backbone, BackboneConfig
from common.outline import outlines
from common.spec import SequenceSpec


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
    if not {"spec", "config"} <= header.keys():
        raise InputError(f"{path}: holds no backbone; expected a file such as student.safetensors")
    with reading_header(path), outlines():
        spec = SequenceSpec.from_dict(json.loads(header["spec"]))
        config: BackboneConfig = make("common.models.backbones", json.loads(header["config"]))
        return config.build(spec), config, spec
