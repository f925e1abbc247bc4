"""Tokenizers that are trained: `varkd pretrain --model tokenizer` writes what `varkd tokenize`
takes. Both sides of that agreement.

Shape letters: N images, C channels, H height, W width.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from common.checkpoint import load_tensors
from common.config import digest
from common.crops import cut_views, source_side
from common.errors import InputError
from common.images import ImagesConfig, ImageSource, open_images
from common.ledger import derive_seed
from common.plugins import kinds, load_plugin
from common.tokenizer import (
    Tokenizer,
    TrainableTokenizerConfig,
    decode_all,
    load_tokenizer,
    save_tokenizer,
)
from deploy.config import RunConfig, Workspace
from deploy.pictures import grid, save_png, side_by_side
from deploy.progress import Bar
from learner.tokenizer_training import MEASURED, image_batches, measure, train_tokenizer

COMMAND = "varkd pretrain --model tokenizer"
SHOWN = 64
"""Images in tokenizer.png."""
FINGERPRINTED = 64
"""Images, taken evenly, that tell one set from another."""


def pretrain_tokenizer(config: RunConfig, workspace: Workspace, target: Console) -> dict[str, Any]:
    """Train the tokenizer on the training images; writes its file and tokenizer.png.

    Raises:
        InputError: the tokenizer is of a kind that is not trained, or an image is bad.
    """
    settings, images, tokens = config.pretrain.tokenizer, config.images, config.tokens
    tokenizer_config = _trainable(config)
    config.tokenizer.describe(images.size)
    side = source_side(images.size, tokens.crops, tokens.crop_range)
    pixel_NCHW = open_images(images.model_copy(update={"size": side}), "train").pixels()
    seed = derive_seed(config.seed, "pretrain-tokenizer")
    views = (cut_views(part, tokens.crops, images.size)[:, 0] for part in pixel_NCHW.split(1024))
    tokenizer = tokenizer_config.fit(
        views, size=images.size, channels=images.channels, seed=seed % 2**32
    )
    generator = torch.Generator().manual_seed(seed)
    batches = image_batches(pixel_NCHW, images.size, tokens.crops, settings.batch_size, generator)
    with Bar(target, "pretrain tokenizer", settings.steps, ("loss", "psnr", "usage")) as bar:
        facts = train_tokenizer(
            tokenizer, batches, settings, seed=seed, device=config.learner.device, metrics=bar
        )
    facts["parameters"] = sum(p.numel() for p in tokenizer.parameters())
    source, *held_out = _splits(images)
    facts["train"] = measure(tokenizer, source.pixels(MEASURED))
    facts["test"] = measure(tokenizer, held_out[0].pixels(MEASURED)) if held_out else None
    save_tokenizer(
        workspace.tokenizer,
        tokenizer,
        config.tokenizer,
        size=images.size,
        channels=images.channels,
        images=fingerprint(source),
        pretrain=facts,
        config_digest=digest(config),
    )
    _picture(workspace, tokenizer, (held_out or [source])[0].pixels(SHOWN))
    workspace.keep_config(config)
    return facts


def load_trained(config: RunConfig, workspace: Workspace) -> Tokenizer:
    """The tokenizer that was trained for this very config and these images.

    Raises:
        InputError: there is none, or it was trained with others.
    """
    path = workspace.tokenizer
    if not path.exists():
        raise InputError(
            f"{path}: no such file; a {config.tokenizer.kind} tokenizer is trained before it "
            f"encodes: run `{COMMAND}` first"
        )
    metadata = load_tensors(path)[1]
    wanted, held = config.tokenizer.model_dump(mode="json"), metadata.get("config", {})
    image = {"size": config.images.size, "channels": config.images.channels}
    for section, found, expected in (
        ("tokenizer", held, {"kind": wanted["kind"], **wanted}),
        ("images", metadata.get("image", {}), image),
    ):
        for name, value in expected.items():
            if found.get(name) != value:
                raise InputError(
                    f"{path}: made with {section}.{name} {found.get(name)}, but the config says "
                    f"{value}; train it again with `{COMMAND}`, or change the config back"
                )
    if metadata.get("images") != fingerprint(open_images(config.images, "train")):
        raise InputError(
            f"{path}: trained on other images than {config.images.train or 'digits'}; train it "
            f"again with `{COMMAND}`, or set images.train back"
        )
    return load_tokenizer(path)


def fingerprint(source: ImageSource) -> str:
    """Changes with the images, but not with where they are stored."""
    hasher = hashlib.sha256(str(len(source)).encode())
    hasher.update(source.label_N.numpy().tobytes())
    hasher.update(source.pixels(FINGERPRINTED).contiguous().numpy().tobytes())
    return hasher.hexdigest()[:16]


def _trainable(config: RunConfig) -> TrainableTokenizerConfig:
    if isinstance(config.tokenizer, TrainableTokenizerConfig):
        return config.tokenizer
    package = "common.tokenizers"
    trained = [
        kind
        for kind in kinds(package)
        if issubclass(load_plugin(package, kind).Config, TrainableTokenizerConfig)
    ]
    raise InputError(
        f"tokenizer.kind is {config.tokenizer.kind}, which is not trained: run `varkd tokenize`, "
        f"or choose a kind that is ({', '.join(trained)})"
    )


def _splits(images: ImagesConfig) -> Iterator[ImageSource]:
    yield open_images(images, "train")
    if images.has_test:
        yield open_images(images, "test")


def _picture(workspace: Workspace, tokenizer: Tokenizer, pixel_NCHW: Tensor) -> None:
    decoded_NCHW = decode_all(tokenizer, tokenizer.encode(pixel_NCHW))
    panels = {"originals": grid(pixel_NCHW, 8), "reconstructions": grid(decoded_NCHW, 8)}
    save_png(workspace.root / "tokenizer.png", side_by_side(panels))
