"""From images or published codes to token files: tokenizer, parts, one file per split."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from common.backbone import SequenceSpec
from common.checkpoint import state_digest
from common.codes import Codes, open_codes
from common.crops import Crops, source_side
from common.errors import InputError
from common.images import ImageSource, open_images
from common.ledger import derive_seed
from common.tokenizer import Tokenizer, TrainableTokenizerConfig, save_tokenizer
from common.tokens import TokenHeader, TokensConfig
from deploy.config import RunConfig, Workspace
from deploy.encoding import BATCH, Encoder, ImagesPart
from deploy.parts import Job, Pool, join, parts_folder
from deploy.trained_tokenizer import load_trained


def tokenize(
    config: RunConfig, workspace: Workspace, target: Console, *, local: bool
) -> dict[str, Any]:
    """Fit the tokenizer, or load a trained one, and write the tokens of every split that exists.

    Finished parts stay when it is interrupted, and are not made again by the same tokenizer.

    Raises:
        InputError: something in the user's files; the message names the file.
        RunFailed: actors died again and again.
    """
    shape = config.tokenizer.describe(config.images.size)
    train, test = _open_train(config, shape), _open_test(config)
    if isinstance(train, ImageSource) and test is not None:
        _require_same_classes(train, test)
    _say_what_was_read(target, train, test)
    target.print(f"tokenizer: {config.tokenizer.kind}, for {len(train)} training images")
    trained = isinstance(config.tokenizer, TrainableTokenizerConfig)
    tokenizer = load_trained(config, workspace) if trained else _fit(config)
    parts = {"train": _plan(config, workspace.train_tokens, train, tokenizer)}
    if test is not None:
        parts["test"] = _plan(config, workspace.test_tokens, test, tokenizer)
    stored = parts["train"][0].path.with_name("tokenizer.safetensors")
    _save(stored, tokenizer, config)
    every_part = [part for split in parts.values() for part in split]
    headers = _job(config, stored, local).finish(every_part, target, _numbers)
    made = [headers[part.path] for part in parts["train"]]
    classes = _classes(train, test, config.tokens, made)
    spec = tokenizer.spec(len(classes))
    for split, path in (("train", workspace.train_tokens), ("test", workspace.test_tokens)):
        if split in parts:
            first = headers[parts[split][0].path]
            header = TokenHeader(spec, classes, first.tokenizer, first.variants)
            join(path, header, parts[split])
    if not trained:  # else the file is there, with the facts of its training
        _save(workspace.tokenizer, tokenizer, config)
    workspace.keep_config(config)
    for path in (workspace.train_tokens, workspace.test_tokens):
        shutil.rmtree(parts_folder(path), ignore_errors=True)
    return {"images": len(train), "variants": made[0].variants, "psnr": psnr(made)}


def _say_what_was_read(target: Console, *sources: ImageSource | Codes | None) -> None:
    for source in sources:
        if isinstance(source, ImageSource):
            for line in source.found.lines(source.name):
                target.print(line, markup=False, soft_wrap=True)


def _open_train(config: RunConfig, shape: SequenceSpec) -> ImageSource | Codes:
    tokens, images = config.tokens, config.images
    if tokens.kind != "images":
        return open_codes(tokens, shape)
    side = source_side(images.size, tokens.crops, tokens.crop_range)
    return open_images(images.model_copy(update={"size": side}), "train")


def _open_test(config: RunConfig) -> ImageSource | None:
    images = config.images
    wanted = images.has_test if config.tokens.kind == "images" else images.test is not None
    return open_images(images, "test") if wanted else None


def _require_same_classes(train: ImageSource, test: ImageSource) -> None:
    """The last classes may lack held-out images: then Parquet does not show them."""
    if test.classes != train.classes[: len(test.classes)]:
        raise InputError(
            f"{test.name}: its {len(test.classes)} classes are not those of {train.name}, which "
            f"has {len(train.classes)}; give both the same class folders or labels"
        )


def _fit(config: RunConfig) -> Tokenizer:
    images = config.images

    def batches() -> Iterator[Tensor]:  # opened only if the tokenizer looks at images
        yield from open_images(images, "train").batches(BATCH)

    return config.tokenizer.fit(
        batches(),
        size=images.size,
        channels=images.channels,
        seed=derive_seed(config.seed, "tokenizer") % 2**32,
    )


def _save(path: Path, tokenizer: Tokenizer, config: RunConfig) -> None:
    images = config.images
    save_tokenizer(path, tokenizer, config.tokenizer, size=images.size, channels=images.channels)


def _plan(
    config: RunConfig, path: Path, source: ImageSource | Codes, tokenizer: Tokenizer
) -> list[ImagesPart]:
    """Cut a split into parts, in a folder named after all that decides what they hold."""
    tokens, rows = config.tokens, len(source)
    crops: Crops = tokens.crops if path.stem == "train" else "center"
    deciding = {"kind", "paths", "classes", "crops", "crop_range", "part_images"}
    facts = {
        "tokenizer": state_digest(tokenizer),
        "images": config.images.model_dump(mode="json"),
        "tokens": tokens.model_dump(mode="json", include=deciding),
        "rows": rows,
    }
    hasher = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    if isinstance(source, ImageSource):
        hasher.update(source.label_N.numpy().tobytes())
    folder = parts_folder(path) / hasher.hexdigest()[:16]
    starts = range(0, rows, tokens.part_images)
    return [
        ImagesPart(
            folder / f"part-{number:05d}.parquet",
            source.subset(range(start, min(start + tokens.part_images, rows))),
            config.images.size,
            crops,
        )
        for number, start in enumerate(starts)
    ]


def _job(config: RunConfig, tokenizer_file: Path, local: bool) -> Job:
    tokens = config.tokens
    return Job(
        config,
        partial(Encoder, tokenizer_file, tokens.device),
        Pool(
            "tokens",
            tokens.workers,
            tokens.cpus,
            tokens.gpus,
            lower="tokens.workers or tokens.part_images",
        ),
        title="encode" if tokens.kind == "images" else "read codes",
        local=local,
    )


def _numbers(headers: Iterable[TokenHeader]) -> dict[str, float]:
    found = psnr(headers)
    return {} if found is None else {"PSNR dB": found}


def psnr(headers: Iterable[TokenHeader]) -> float | None:
    """Of the reconstructions that the parts looked at, in dB; None where there were no images."""
    facts = [header.facts for header in headers]
    pixels = sum(fact["pixels"] for fact in facts)
    error = sum(fact["squared_error"] for fact in facts)
    return 10 * math.log10(255.0**2 * pixels / max(error, 1e-9)) if pixels else None


def _classes(
    train: ImageSource | Codes,
    test: ImageSource | None,
    tokens: TokensConfig,
    made: list[TokenHeader],
) -> tuple[str, ...]:
    """Names of the classes; codes have only numbers."""
    if isinstance(train, ImageSource):
        return train.classes
    count = tokens.classes or max(header.facts["largest_label"] for header in made) + 1
    if test is not None and len(test.classes) > count:
        raise InputError(
            f"{test.name}: has {len(test.classes)} classes, but the codes {train.name} have "
            f"{count}; set tokens.classes"
        )
    return tuple(str(label) for label in range(count))
