"""What all cells of a study share: tokenizer, tokens, teacher, base student, feature extractor.

start.json says what the start was made from, and what the files in it hold: another start is
refused by name, and cells of other files are run again.
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from common.artifacts.model_file import ModelFile
from common.data.tokens import load_tokens, read_header
from common.errors import InputError
from common.files.atomic import write_text
from common.files.made_from import difference
from common.files.paths import read_json, require_file
from common.images.opening import open_images
from common.tokenization.tokenizer import TrainableTokenizerConfig
from deploy.config import PretrainsConfig, RunConfig
from deploy.console.progress import busy
from deploy.run_folder.borrowing import link, shared
from deploy.run_folder.workspace import Workspace
from deploy.stages.generate import generate
from deploy.stages.pretrain import pretrain
from deploy.stages.quality import feature_facts
from deploy.stages.tokenize import tokenize
from deploy.stages.training import require_finished
from deploy.study.analysis.results import BASE
from deploy.study.cells import SHARED
from deploy.study.config import Study
from deploy.study.measuring import require_metrics
from learner.pretrain import HARMLESS

MARK = "start.json"
"""Fields of [tokens] that decide what the tokens are."""


def prepare(study: Study, root: Path, target: Console, *, local: bool) -> None:
    """Make in `root` what is not there yet.

    Raises:
        InputError: the folder holds the start of another study, or no files of one.
    """
    config, workspace = study.start, Workspace(root)
    with busy(target, "start: reading what it is made from"):
        ours = made_from(config)
    held = read_mark(root).get("made_from")
    is_begun = held is not None and any((root / name).exists() for name in SHARED)
    if is_begun and (changed := difference(held, ours)) is not None:
        raise InputError(
            f"{root}: made from another base or [set] than this study has now: {changed}; choose "
            "another --out, change that back, or throw the old results away with --restart"
        )
    require_metrics(config, workspace)
    for path in shared(workspace):
        if path.exists():
            require_file(path, "what an earlier start made")
    write_text(root / MARK, json.dumps({"made_from": ours}))
    _make(study, workspace, target, local=local)
    features = feature_facts(study.judging, workspace, target)
    with busy(target, "start: reading what it holds"):
        holds = contents(study, workspace) | {"features": features.get("digest")}
    write_text(root / MARK, json.dumps({"made_from": ours, "contents": holds}))
    workspace.keep_config(config)


def _make(study: Study, workspace: Workspace, target: Console, *, local: bool) -> None:
    config = study.start
    if study.shared is not None:
        link(study.shared, workspace.root)
    if isinstance(config.tokenizer, TrainableTokenizerConfig):
        require_finished(pretrain(config, workspace, "tokenizer", target, resume=True), target)
    if not _is_whole(workspace.train_tokens, target):
        tokenize(config, workspace, target, local=local)
    if config.teacher.weights is None:
        require_finished(pretrain(config, workspace, "teacher", target, resume=True), target)
    if BASE in study.references and config.learner.weights is None:
        require_finished(pretrain(config, workspace, "student", target, resume=True), target)
    if study.generating is not None:
        generate(study.generating, workspace, target, local=local)


def _is_whole(tokens: Path, target: Console) -> bool:
    if not tokens.exists():
        return False
    try:
        read_header(tokens)
    except InputError as error:
        target.print(f"{error}; the images are encoded again")
        return False
    return True


def read_mark(root: Path) -> dict[str, Any]:
    """What start.json says; nothing where there is none.

    Raises:
        InputError: it is damaged.
    """
    path = root / MARK
    if not path.exists():
        return {}
    try:
        found = read_json(path, "what a start was made from")
    except InputError as error:
        raise InputError(
            f"{error}, so nobody knows what the start was made from; begin "
            "again with --restart, or choose another --out"
        ) from None
    return found if isinstance(found, dict) else {}


def made_from(config: RunConfig) -> dict[str, Any]:
    """All that decides what the start holds; files by their contents."""
    pretrain = config.pretrain.model_dump(
        mode="json", exclude=dict.fromkeys(PretrainsConfig.model_fields, HARMLESS)
    )
    return {
        "seed": config.seed,
        "images": _images(config),
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "tokens": config.tokens.model_dump(mode="json", exclude=set(config.tokens.harmless)),
        "models": config.models.model_dump(mode="json"),
        **config.made_from_conditions,
        "pretrain": pretrain,
        "teacher": {"weights": _weights(config, "teacher")},
        "learner": {"weights": _weights(config, "student")},
        "evaluate": {"classifier": config.evaluate.classifier.made_from},
    }


def contents(study: Study, workspace: Workspace) -> dict[str, str | None]:
    """Digests of what cells read in place, by what it is."""
    config = study.start
    generated = None
    if study.generating is not None:
        generated = load_tokens(workspace.teacher_tokens).digest()
    has_base = workspace.has_model(config, "student_before")
    student = workspace.model(config, "student_before") if has_base else None
    return {
        "tokens": load_tokens(workspace.train_tokens).digest(),
        "teacher": workspace.model(config, "teacher").digest(),
        "base student": student.digest() if student else None,
        "teacher's token dataset": generated,
        "images": json.dumps(_images(config)),
    }


def _images(config: RunConfig) -> dict[str, str]:
    images = config.images
    splits = ["train"] if images.kind == "digits" or images.train is not None else []
    splits += ["test"] if images.has_test else []
    return {
        split: open_images(images, "train" if split == "train" else "test").digest()
        for split in splits
    }


def _weights(config: RunConfig, which: str) -> str | None:
    section = config.teacher if which == "teacher" else config.learner
    if section.weights is None:
        return None
    key = "teacher.weights" if which == "teacher" else "learner.weights"
    if not section.weights.exists():
        raise InputError(f"{key}: {section.weights} does not exist; give the path of a checkpoint")
    architecture = getattr(config.models, which)
    spec = config.tokenizer.describe(config.images.size)
    path, ema = section.weights, section.weights_ema
    return ModelFile(path, key, architecture, spec, path, ema).digest()
