"""Tokenizers that are trained: `varkd pretrain --model tokenizer` writes what `varkd tokenize`
takes. Both sides of that agreement.

Shape letters: N images, C channels, H height, W width.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from common.config.plugins import kinds, load_plugin
from common.config.schema import digest
from common.data.crops import cut_views, source_side
from common.errors import InputError
from common.files.tensors import load_tensors
from common.images.opening import ImagesConfig, ImageSource, open_images
from common.memory import require_memory
from common.randomness import derive_seed
from common.tokenization.tokenizer import (
    Tokenizer,
    TrainableTokenizer,
    TrainableTokenizerConfig,
    decode_all,
    load_tokenizer,
    require_room,
    save_tokenizer,
)
from deploy.config import RunConfig
from deploy.console.progress import busy
from deploy.report.grids import grid, save_png, side_by_side
from deploy.run_folder.workspace import Workspace
from deploy.stages.training import Plan, Stage
from learner.pretrain import HARMLESS
from learner.tokenizer_training import MEASURED, ImageBatches, TokenizerTraining, measure

COMMAND = "varkd pretrain --model tokenizer"
SHOWN = 64
"""Images in tokenizer.png."""


def pretrain_tokenizer(
    config: RunConfig,
    workspace: Workspace,
    target: Console,
    *,
    resume: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Train the tokenizer on the training images; writes its file and tokenizer.png.

    A file that was made from the same stays. Returns the facts of the training; with a "cause", it
    was stopped, and its snapshot is all there is.

    Raises:
        InputError: the tokenizer is of a kind that is not trained, an image is bad, or work would
            be lost.
    """
    source, *held_out = _splits(config.images)
    with busy(target, "reading the images"):
        plan = _plan(config, workspace, source)
    stage = Stage(plan, workspace, target)
    if not restart and (facts := stage.finished()) is not None:
        return facts
    stage.begin(resume=resume, restart=restart)
    with busy(target, "fitting the codes that the training starts from"):
        tokenizer, training = _start(config)
    course = stage.run(training, ("loss", "psnr", "usage"))
    workspace.keep_config(config)
    facts = course.facts() | {"parameters": sum(p.numel() for p in tokenizer.parameters())}
    if "cause" in facts:
        return facts
    tokenizer.cpu().eval()
    judged = [measure(tokenizer, split.pixels(MEASURED)) for split in (source, *held_out)]
    facts |= dict(zip(("train", "test"), (*judged, None), strict=False))
    facts["codes_moved"] = training.revival.moved
    _picture(workspace, tokenizer, (held_out or [source])[0].pixels(SHOWN))
    _store(config, tokenizer, plan, facts)
    stage.clear()
    return facts


def _start(config: RunConfig) -> tuple[TrainableTokenizer, TokenizerTraining]:
    """The tokenizer as it is fitted, and its training, before the first step."""
    settings, images, tokens = config.pretrain.tokenizer, config.images, config.tokens
    side = source_side(images.size, tokens.crops, tokens.crop_range)
    require_room(config.tokenizer, size=images.size, channels=images.channels)
    source = open_images(images.model_copy(update={"size": side}), "train")
    pixels = 2 * len(source) * images.channels * side**2  # twice while they are put together
    require_memory(pixels, "the training images", "lower images.size or give fewer images")
    pixel_NCHW = source.pixels()
    seed = derive_seed(config.seed, "pretrain-tokenizer")
    views = (cut_views(part, tokens.crops, images.size)[:, 0] for part in pixel_NCHW.split(1024))
    tokenizer = _trainable(config).fit(
        views, size=images.size, channels=images.channels, seed=seed % 2**32
    )
    batches = ImageBatches(
        pixel_NCHW,
        images.size,
        tokens.crops,
        settings.batch_size,
        torch.Generator().manual_seed(seed),
    )
    device = settings.device
    return tokenizer, TokenizerTraining(tokenizer, batches, settings, seed=seed, device=device)


def _plan(config: RunConfig, workspace: Workspace, source: ImageSource) -> Plan:
    settings = config.pretrain.tokenizer
    _trainable(config).describe(config.images.size)
    made_from = {
        "seed": config.seed,
        "images": fingerprint(source),
        "tokens": config.tokens.model_dump(mode="json", include={"crops", "crop_range"}),
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "pretrain": {"tokenizer": settings.model_dump(mode="json", exclude=HARMLESS)},
    }
    return Plan(
        name="tokenizer",
        path=workspace.tokenizer,
        made_from=made_from,
        steps=settings.steps,
        checkpoint_every=settings.checkpoint_every,
        is_distilled_from=True,
    )


def _store(config: RunConfig, tokenizer: Tokenizer, plan: Plan, facts: dict[str, Any]) -> None:
    save_tokenizer(
        plan.path,
        tokenizer,
        config.tokenizer,
        size=config.images.size,
        channels=config.images.channels,
        images=plan.made_from["images"],
        pretrain=facts,
        made_from=plan.made_from,
        config_digest=digest(config),
    )


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
    """Changes with the pixels of any image and with their order; not with labels, names or where
    they are stored."""
    hasher = hashlib.sha256(json.dumps(source.decoding, sort_keys=True).encode())
    for content in source.hashes():
        hasher.update(f"{content}\n".encode())
    return hasher.hexdigest()[:16]


def _trainable(config: RunConfig) -> TrainableTokenizerConfig:
    if isinstance(config.tokenizer, TrainableTokenizerConfig):
        return config.tokenizer
    package = "common.tokenization.tokenizers"
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
