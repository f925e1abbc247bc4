"""One-pass students on disk: files of ours, and the released checkpoints of Distilled Decoding."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.artifacts.model_file import ONE_PASS, identify
from common.config.plugins import make
from common.errors import InputError
from common.files.atomic import write_atomically
from common.files.loading import ignoring, load
from common.files.official import TRAINER, TRAINER_AVERAGE, Checkpoint
from common.files.tensors import _header, reading_header, save_tensors
from common.models.backbone import Official
from common.models.distilled_decoding import DistilledDecoder, DistilledDecoderConfig
from common.models.generator import Generator, GeneratorConfig
from common.outline import outlines
from common.spec import SequenceSpec

PACKAGE = "common.models.generators"
MASK = "attn_bias_for_masking"


def save_generator(path: Path, model: Generator, config: GeneratorConfig, **extra: Any) -> None:
    """Weights and codes with the config and spec that rebuild the module."""
    save_generator_state(path, model.state_dict(), config, model.spec, **extra)


def save_generator_state(
    path: Path,
    state: Mapping[str, Tensor],
    config: GeneratorConfig,
    spec: SequenceSpec,
    **extra: Any,
) -> None:
    """What `save_generator` writes, where there is no module around the tensors."""
    metadata = {"generator": config.model_dump(mode="json"), "spec": spec.as_dict(), **extra}
    save_tensors(path, state, metadata)


def describe_generator(path: Path) -> tuple[SequenceSpec, Any]:
    """What a file of ours holds, from its header alone: spec and config.

    Raises:
        InputError: no such file, or it holds something else.
    """
    header = _header(path)
    if "generator" not in header:
        what = "a backbone" if "config" in header else "no generator"
        raise InputError(
            f"{path} holds {what}, expected a one-pass student; a backbone's weights are where "
            "one starts (start_from), not what one is"
        )
    with reading_header(path):
        spec = SequenceSpec.from_dict(json.loads(header["spec"]))
        return spec, make(PACKAGE, json.loads(header["generator"]))


def load_generator(
    path: Path, dtype: torch.dtype | None = None, *, used_as: GeneratorConfig | None = None
) -> tuple[Generator, Any]:
    """The module that `save_generator` stored, on the CPU and in eval mode, and its config.

    `used_as` is built instead of the stored config: the same network, split elsewhere. Parameters
    are cast to `dtype` while they are read; codes stay float32.

    Raises:
        InputError: no such file, or it holds something else.
    """
    spec, stored = describe_generator(path)
    config, checkpoint = used_as or stored, Checkpoint(path)
    with reading_header(path), outlines():
        model = config.build(spec, torch.empty(checkpoint.shapes["codebook_VD"]))
    load(model, checkpoint, lambda name: name, dtype=dtype)
    return model.eval(), config


def load_released(
    path: Path,
    config: DistilledDecoderConfig,
    spec: SequenceSpec,
    codebook_VD: Tensor,
    *,
    ema: bool = False,
    dtype: torch.dtype | None = None,
) -> DistilledDecoder:
    """A student of the released layout, in eval mode on the CPU; its file leaves codes to the
    tokenizer.

    Raises:
        InputError: the file has plain autoregressive weights or another family's, was trained with
            another mask, or names or shapes differ.
    """
    checkpoint = Checkpoint(path, ema=ema)
    require_released(checkpoint, config)
    with outlines():
        model = config.build(spec, codebook_VD.detach().cpu())
    assert isinstance(model, DistilledDecoder)
    _require_mask(checkpoint, model)
    given = {"codebook_VD": model.codebook_VD}
    load(model, checkpoint, ignoring(*model.official.ignored), given=given, dtype=dtype)
    return model.eval()


def released_state(model: DistilledDecoder) -> dict[str, Tensor]:
    """Everything that the released code's own model has, under its names."""
    state = {n: v.detach().cpu().contiguous() for n, v in model.state_dict().items()}
    del state["codebook_VD"]
    return state | model.official_buffers()


def released_content(
    official: Official, state: dict[str, Tensor], averaged: dict[str, Tensor]
) -> dict[str, Any]:
    """What a released file holds: weights and their average, where its sampler looks for them."""
    if official.top_level is None:  # VAR's trainer has a place of its own
        return {"trainer": {TRAINER: state, TRAINER_AVERAGE: averaged}}
    return {"model": state, "ema": averaged}


def save_released(path: Path, model: DistilledDecoder, averaged: DistilledDecoder) -> None:
    """A file that the released samplers read, with and without their `--ema`."""
    content = released_content(model.official, released_state(model), released_state(averaged))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:  # torch.save of a path has C++'s words for a full disk
            torch.save(content, handle)

    write_atomically(path, write)


def require_released(checkpoint: Checkpoint, config: DistilledDecoderConfig) -> None:
    """Refuse a file that is no student of the released layout, by its shapes.

    Raises:
        InputError: plain autoregressive weights, or another family's student.
    """
    path = checkpoint.path
    if config.fits(checkpoint.shapes):
        return
    found = identify(checkpoint.shapes)
    if found is not None and ONE_PASS not in checkpoint.shapes:
        raise InputError(
            f"{path} holds plain autoregressive weights ({found[0]}), expected a distilled "
            f"student ({config.kind}); build one and let it start_from these"
        )
    some = ", ".join(sorted(checkpoint.shapes)[:3])
    raise InputError(
        f"{path} holds no {config.kind} (it has {some}, ...); set the generator's kind to the "
        "file's family, or choose another file"
    )


def _require_mask(checkpoint: Checkpoint, model: DistilledDecoder) -> None:
    """A stored mask would take the place of the code's own where it was trained."""
    if MASK not in checkpoint.entries:
        return
    ((_, stored),) = checkpoint.tensors([MASK], finite=False)
    ours = model.official_buffers()[MASK]
    if stored.shape != ours.shape or not torch.equal(stored == 0, ours == 0):
        raise InputError(
            f"{checkpoint.path}: {MASK} is not the mask that the model would have; set the "
            "generator's mask to the other of released and paper, or check the scales"
        )
