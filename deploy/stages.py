"""The stages before and after distillation: pretrain, sample. One process, no Ray."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from common.backbone import Backbone, build_seeded, require_same_spec
from common.checkpoint import save_backbone, state_digest
from common.config import digest
from common.device import place
from common.errors import InputError
from common.ledger import derive_seed
from common.model_file import ModelFile
from common.tokenizer import Tokenizer, load_tokenizer
from common.tokens import load_tokens
from deploy.config import RunConfig, Workspace
from deploy.progress import Bar
from learner.pretrain import pretrain
from rollout.evaluate import sample_batches
from rollout.sampler import SamplingConfig

Model = Literal["teacher", "student"]


def pretrain_model(
    config: RunConfig, workspace: Workspace, which: Model, target: Console
) -> dict[str, Any]:
    """Maximum likelihood of teacher or student on the training tokens; writes its file."""
    data = load_tokens(workspace.existing_tokens())
    architecture = getattr(config.models, which)
    settings = getattr(config.pretrain, which)
    seed = derive_seed(config.seed, f"pretrain-{which}")
    backbone = build_seeded(architecture, data.spec, seed)
    tokenizer = load_tokenizer(workspace.existing_tokenizer())
    if state_digest(tokenizer) != data.tokenizer_digest:
        raise InputError(
            f"{workspace.train_tokens}: tokens of another tokenizer than {workspace.tokenizer}; "
            "make them again with `varkd tokenize`"
        )
    backbone.attach(tokenizer.quantizer)
    path = workspace.teacher if which == "teacher" else workspace.student_before
    with Bar(target, f"pretrain {which}", settings.steps) as bar:
        facts = pretrain(
            backbone,
            data,
            settings,
            seed=seed,
            device=config.learner.device,
            metrics=bar,
            section=f"pretrain.{which}",
        )
    facts["parameters"] = sum(p.numel() for p in backbone.parameters())
    save_backbone(path, backbone, architecture, pretrain=facts, config_digest=digest(config))
    workspace.keep_config(config)
    return facts


def draw_batches(
    backbone: Backbone,
    tokenizer: Tokenizer,
    label_N: Tensor,
    *,
    sampling: SamplingConfig,
    batch_size: int,
    seed: int,
    size: int | None = None,
) -> Iterator[Tensor]:
    """Sample and decode, at the side `size` if given: uint8 pixel_BCHW on the CPU, in order."""
    drawn = sample_batches(backbone, label_N, sampling=sampling, batch_size=batch_size, seed=seed)
    return (tokenizer.decode(token_BL, size).cpu() for token_BL in drawn)


def draw_images(
    backbone: Backbone,
    tokenizer: Tokenizer,
    label_N: Tensor,
    *,
    sampling: SamplingConfig,
    batch_size: int,
    seed: int,
    size: int | None = None,
) -> Tensor:
    """The same as one pixel_NCHW."""
    batches = draw_batches(
        backbone,
        tokenizer,
        label_N,
        sampling=sampling,
        batch_size=batch_size,
        seed=seed,
        size=size,
    )
    return torch.cat(list(batches))


def load_for_sampling(
    file: ModelFile, workspace: Workspace, device: str
) -> tuple[Backbone, Tokenizer]:
    """A stored backbone with the tokenizer that it was trained on.

    Raises:
        InputError: a file is missing, or they speak different tokens.
    """
    tokenizer = load_tokenizer(workspace.existing_tokenizer())
    require_same_spec(
        tokenizer.spec(file.spec.num_classes),
        file.spec,
        us=f"the tokenizer {workspace.tokenizer}",
        them=str(file.path),
    )
    return file.load().to(place(device)), tokenizer.to(place(device))
