"""From images or published codes to token files: tokenizer, parts, one file per split."""

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from common.data.image_rows import BATCH, ImageRows
from common.data.token_rows import TokenRows
from common.data.token_source import TokenSourceConfig
from common.data.tokens import TokenHeader
from common.errors import InputError
from common.files.atomic import drop_leftovers
from common.files.tensors import state_digest
from common.images.decoded import DecodedImages
from common.images.opening import open_images
from common.images.source import EncodedImages, decoding
from common.randomness import derive_seed
from common.spec import SequenceSpec
from common.tokenization.tokenizer import (
    Tokenizer,
    TrainableTokenizerConfig,
    require_room,
    save_tokenizer,
)
from deploy.backend.actor_pool import ActorPool
from deploy.backend.partitions import PartitionJob, join, parts_folder
from deploy.config import RunConfig
from deploy.console.progress import busy
from deploy.run_folder.workspace import Workspace
from deploy.stages.encoder import Encoder, ImagesPart, outdated
from deploy.stages.pretrain_tokenizer import load_trained

DONE = {
    "transparent": " (shown on {background})",
    "turned upright": " (images.exif)",
    "of 16 bits": " (scaled to 8)",
    "of several frames": " (the first was taken)",
}
"""How the notes of `common.images.pixels` are told."""
NOT_IN_PARTS = {"workers", "cpus", "gpus", "device", "crops", "paths", "classes"}
"""Fields of [tokens] that do not decide what a part holds, or are looked at elsewhere."""


def tokenize(
    config: RunConfig, workspace: Workspace, target: Console, *, local: bool
) -> dict[str, Any]:
    """Fit the tokenizer, or load a trained one, and write the tokens of every split that exists.

    Finished parts stay when it is interrupted, and are not made again by the same tokenizer.

    Raises:
        InputError: something in the user's files; the message names the file.
        RunFailed: actors died again and again.
    """
    tokens, images = config.tokens, config.images
    shape = config.tokenizer.describe(images.size)
    with busy(target, "looking at the images", at_once=False):
        train, test = tokens.open(images, shape), tokens.open_test(images)
    _require_same_classes(train, test)
    _say_what_was_read(target, train, test)
    target.print(f"tokenizer: {config.tokenizer.kind}, for {len(train)} training images")
    trained = isinstance(config.tokenizer, TrainableTokenizerConfig)
    make = load_trained if trained else partial(_fit, train, target)
    tokenizer = make(config, workspace)
    splits = [_plan(config, "train", workspace.train_tokens, train, tokenizer)]
    if test is not None:
        splits.append(_plan(config, "test", workspace.test_tokens, test, tokenizer))
    stored = splits[0].parts[0].path.with_name("tokenizer.safetensors")
    _save(stored, tokenizer, config)
    every_part = [part for split in splits for part in split.parts]
    _drop_leftovers(every_part, target)
    headers = _job(config, stored, local).finish(every_part, target, _numbers)
    made = [headers[part.path] for part in splits[0].parts]
    classes = _classes(train, test, tokens, made)
    for split in splits:
        _join(split, headers, tokenizer.spec(len(classes)), classes, config, target)
    if not trained:  # else the file is there, with the facts of its training
        _save(workspace.tokenizer, tokenizer, config)
    workspace.keep_config(config)
    for split in splits:
        shutil.rmtree(parts_folder(split.path), ignore_errors=True)
    return {"images": len(train), "variants": made[0].variants, "psnr": psnr(made)}


@dataclass(frozen=True)
class PlannedSplit:
    """A token file and the parts that it is made of."""

    name: str
    path: Path
    source: TokenRows
    parts: list[ImagesPart]


def _say_what_was_read(target: Console, *sources: TokenRows | None) -> None:
    for source in sources:
        for line in source.found() if source is not None else ():
            target.print(line, markup=False, soft_wrap=True)


def _drop_leftovers(parts: list[ImagesPart], target: Console) -> None:
    """Remove what a killed command left half-written, and parts of what is another image now."""
    for folder in {part.path.parent for part in parts}:
        drop_leftovers(folder)
        drop_leftovers(folder.parents[1])
    for part in parts:
        reason = outdated(part) if part.path.exists() else None
        if reason is not None:
            target.print(f"making {part.path.name} again: {reason}", markup=False, soft_wrap=True)
            part.path.unlink()


def _join(
    split: PlannedSplit,
    headers: Mapping[Path, TokenHeader],
    spec: SequenceSpec,
    classes: tuple[str, ...],
    config: RunConfig,
    target: Console,
) -> None:
    """One file of all parts, which says what was read, left out and done to pixels."""
    made = [headers[part.path] for part in split.parts]
    notes: Counter[str] = Counter()
    hashes: list[str] = []
    for header in made:
        notes.update(header.facts["notes"])
        hashes += header.facts["contents"]["hashes"]
    facts = {"pixels": dict(notes), **split.source.facts(hashes)}
    header = TokenHeader(spec, classes, made[0].tokenizer, made[0].variants, facts)
    join(split.path, header, split.parts)
    if notes:
        told = ", ".join(
            f"{count:,} {note}{DONE[note].format(background=config.images.background)}"
            for note, count in sorted(notes.items())
        )
        target.print(f"{split.name} images: {told}", markup=False, soft_wrap=True)


def _require_same_classes(train: TokenRows, test: TokenRows | None) -> None:
    """The last classes may lack held-out images: then Parquet does not show them."""
    if test is None or train.classes is None or test.classes is None:
        return
    names, held_out = train.classes[: len(test.classes)], test.classes
    numbers = tuple(str(label) for label in range(len(held_out)))  # files without names
    if (held_out not in (names, numbers) and names != numbers) or len(names) < len(held_out):
        raise InputError(
            f"{test.name}: its {len(test.classes)} classes are not those of {train.name}, which "
            f"has {len(train.classes)}; give both the same class folders or labels"
        )


def _decoded(config: RunConfig, workspace: Workspace) -> DecodedImages:
    """What a tokenizer that is fitted to the images decodes, to encode it afterwards."""
    images = config.images
    folder = parts_folder(workspace.train_tokens) / "decoded"
    return DecodedImages(folder, (images.channels, images.size, images.size), decoding(images))


def _fit(train: TokenRows, target: Console, config: RunConfig, workspace: Workspace) -> Tokenizer:
    """On the training images; `train` takes pixels from there."""
    images, decoded = config.images, _decoded(config, workspace)
    if isinstance(train, ImageRows):
        train.use(decoded)

    def batches() -> Iterator[Tensor]:  # opened only if the tokenizer looks at images
        source = open_images(images, "train")
        if isinstance(source, EncodedImages):
            yield from decoded.keeping(partial(source.batches, BATCH), len(source))
        else:
            yield from source.batches(BATCH)

    require_room(config.tokenizer, size=images.size, channels=images.channels)
    with busy(target, f"preparing tokenizer {config.tokenizer.kind}", at_once=False):
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
    config: RunConfig,
    name: str,
    path: Path,
    source: TokenRows,
    tokenizer: Tokenizer,
) -> PlannedSplit:
    """Cut a split into parts, in a folder named after all that decides what they hold, but for the
    images themselves: a part says of which it was made."""
    tokens, rows = config.tokens, len(source)
    facts = {
        "tokenizer": state_digest(tokenizer),
        "decoding": decoding(config.images),
        "tokens": tokens.model_dump(mode="json", exclude=NOT_IN_PARTS),
        "crops": tokens.crops if name == "train" else "center",
        "rows": rows,
    }
    hasher = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    hasher.update(source.layout())
    folder = parts_folder(path) / hasher.hexdigest()[:16]
    starts = range(0, rows, tokens.part_images)
    parts = [
        ImagesPart(
            folder / f"part-{number:05d}.parquet",
            source.subset(range(start, min(start + tokens.part_images, rows))),
        )
        for number, start in enumerate(starts)
    ]
    return PlannedSplit(name, path, source, parts)


def _job(config: RunConfig, tokenizer_file: Path, local: bool) -> PartitionJob:
    tokens = config.tokens
    return PartitionJob(
        config,
        partial(Encoder, tokenizer_file, tokens.device),
        ActorPool(tokens.doing, tokens.cpus, tokens.gpus, most=tokens.workers),
        section="tokens",
        lower="tokens.workers or tokens.part_images",
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
    train: TokenRows,
    test: TokenRows | None,
    tokens: TokenSourceConfig,
    made: list[TokenHeader],
) -> tuple[str, ...]:
    """Names of the classes; where there are none, all numbers up to the largest label."""
    if train.classes is not None:
        return train.classes
    seen = {label for header in made for label in header.facts["labels"]}
    count = tokens.classes or max(seen) + 1
    gap = next((label for label in range(count) if label not in seen), None)
    if gap is not None and tokens.classes is None:
        raise InputError(
            f"{train.name}: no image has label {gap}, but labels go up to {max(seen)}; set "
            f"tokens.classes={count} if classes without images are meant"
        )
    if test is not None and len(test.classes or ()) > count:
        raise InputError(
            f"{test.name}: has {len(test.classes or ())} classes, but the codes {train.name} have "
            f"{count}; set tokens.classes"
        )
    return tuple(str(label) for label in range(count))
