"""The stages before and after distillation: tokenize, pretrain, sample. One process, no Ray."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from common.backbone import Backbone, build_seeded
from common.checkpoint import save_backbone, state_digest, write_text
from common.config import digest, dump_toml
from common.device import place
from common.images import ImageSource, Split, open_images
from common.ledger import derive_seed
from common.tokenizer import Tokenizer, decode_all, load_tokenizer, save_tokenizer
from common.tokens import TokenDataset, load_tokens, save_tokens
from deploy.config import RunConfig, Workspace
from deploy.progress import Bar
from learner.pretrain import pretrain
from rollout.evaluate import sample_tokens
from rollout.sampler import SamplingConfig

ENCODE_BATCH = 256
Model = Literal["teacher", "student"]


def tokenize(config: RunConfig, workspace: Workspace, target: Console) -> dict[str, Any]:
    """Fit the tokenizer on the training images and encode every split that exists."""
    images = config.images
    train = open_images(images, "train")
    test = open_images(images, "test") if images.has_test else None
    config.tokenizer.describe(images.size)  # refuse a bad patch size before reading pixels
    target.print(f"tokenizer: fitting {config.tokenizer.kind} on {len(train)} images")
    tokenizer = config.tokenizer.fit(
        train.batches(ENCODE_BATCH),
        size=images.size,
        channels=images.channels,
        seed=derive_seed(config.seed, "tokenizer") % 2**32,
    )
    encoded = {"train": _encode(train, tokenizer, "train", target)}
    if test is not None:
        encoded["test"] = _encode(test, tokenizer, "test", target)
    save_tokenizer(
        workspace.tokenizer, tokenizer, config.tokenizer, size=images.size, channels=images.channels
    )
    for split, path in (("train", workspace.train_tokens), ("test", workspace.test_tokens)):
        if split in encoded:
            save_tokens(path, encoded[split][0])
    write_text(workspace.config, dump_toml(config))
    return {"images": len(train), "psnr": encoded["train"][1]}


@torch.no_grad()
def _encode(
    source: ImageSource, tokenizer: Tokenizer, split: Split, target: Console
) -> tuple[TokenDataset, float]:
    """The token dataset of a split, and the reconstruction's PSNR in dB."""
    tokens: list[Tensor] = []
    error = pixels = psnr = 0.0
    with Bar(target, f"encode {split}", len(source)) as bar:
        done = 0
        for pixel_BCHW in source.batches(ENCODE_BATCH):
            token_BL = tokenizer.encode(pixel_BCHW)
            difference = tokenizer.decode(token_BL).float() - pixel_BCHW.float()
            error += float(difference.square().sum())
            pixels += difference.numel()
            tokens.append(token_BL)
            done += len(token_BL)
            psnr = 10 * math.log10(255.0**2 * pixels / max(error, 1e-9))
            bar.show(done, {"PSNR dB": psnr})
    data = TokenDataset(
        torch.cat(tokens),
        source.label_N,
        tokenizer.spec(len(source.classes)),
        source.classes,
        state_digest(tokenizer),
    )
    return data, psnr


def pretrain_model(
    config: RunConfig, workspace: Workspace, which: Model, target: Console
) -> dict[str, Any]:
    """Maximum likelihood of teacher or student on the training tokens; writes its file."""
    data = load_tokens(workspace.existing_tokens())
    architecture = getattr(config.models, which)
    settings = getattr(config.pretrain, which)
    seed = derive_seed(config.seed, f"pretrain-{which}")
    backbone = build_seeded(architecture, data.spec, seed)
    path = workspace.teacher if which == "teacher" else workspace.student_before
    with Bar(target, f"pretrain {which}", settings.steps) as bar:
        facts = pretrain(
            backbone, data, settings, seed=seed, device=config.learner.device, metrics=bar
        )
    facts["parameters"] = sum(p.numel() for p in backbone.parameters())
    save_backbone(path, backbone, architecture, pretrain=facts, config_digest=digest(config))
    write_text(workspace.config, dump_toml(config))
    return facts


def draw_images(
    backbone: Backbone,
    tokenizer: Tokenizer,
    label_N: Tensor,
    *,
    sampling: SamplingConfig,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Sample and decode; returns uint8 pixel_NCHW on the CPU."""
    token_NL = sample_tokens(backbone, label_N, sampling=sampling, batch_size=batch_size, seed=seed)
    return decode_all(tokenizer, token_NL)


def load_for_sampling(path: Path, workspace: Workspace, device: str) -> tuple[Backbone, Tokenizer]:
    """A stored backbone with the tokenizer that it was trained on.

    Raises:
        InputError: a file is missing, or they speak different tokens.
    """
    from common.backbone import require_same_spec
    from common.checkpoint import load_backbone

    tokenizer = load_tokenizer(workspace.existing_tokenizer())
    backbone, _ = load_backbone(path)
    require_same_spec(
        tokenizer.spec(backbone.spec.num_classes),
        backbone.spec,
        us=f"the tokenizer {workspace.tokenizer}",
        them=str(path),
    )
    return backbone.to(place(device)), tokenizer
