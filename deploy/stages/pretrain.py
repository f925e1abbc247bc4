"""The stages before and after distillation: pretrain, sample. One process, no Ray."""

from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from common.artifacts.backbone_file import save_backbone
from common.artifacts.model_file import ModelFile
from common.config.schema import digest
from common.data.tokens import TokenDataset, load_tokens, read_header
from common.errors import InputError
from common.files.tensors import state_digest
from common.memory import module_bytes, require_memory
from common.models.backbone import Backbone, BackboneConfig, build_seeded
from common.randomness import derive_seed
from common.spec import SequenceSpec
from common.tokenization.tokenizer import Tokenizer, load_tokenizer
from deploy.config import RunConfig
from deploy.console.followed import Course
from deploy.run_folder.workspace import Workspace
from deploy.stages.pretrain_tokenizer import pretrain_tokenizer
from deploy.stages.training import Plan, Stage
from learner.pretrain import HARMLESS, PretrainConfig, Pretraining

Model = Literal["teacher", "student"]
TRAINED_COPIES = 4
"""Weights, gradients and AdamW's two averages."""


def pretrain(
    config: RunConfig,
    workspace: Workspace,
    which: Literal["tokenizer", Model],
    target: Console,
    *,
    resume: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Train one part of the run, as `pretrain_tokenizer` or `pretrain_model`."""
    if which != "tokenizer" and which not in trained_models(config):
        raise InputError(
            f"--model {which}: a {config.models.student.kind} is not trained by maximum likelihood "
            "but starts from the teacher in `varkd distill`; give --model teacher"
        )
    how = {"resume": resume, "restart": restart}
    if which == "tokenizer":
        return pretrain_tokenizer(config, workspace, target, **how)
    return pretrain_model(config, workspace, which, target, **how)


def trained_models(config: RunConfig) -> tuple[Model, ...]:
    """Those that maximum likelihood trains: a one-pass student starts from the teacher itself."""
    is_backbone = isinstance(config.models.student, BackboneConfig)
    return ("teacher", "student") if is_backbone else ("teacher",)


def pretrain_model(
    config: RunConfig,
    workspace: Workspace,
    which: Model,
    target: Console,
    *,
    resume: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Maximum likelihood of teacher or student on the training tokens; writes its file.

    A file that was made from the same stays. Returns the facts of the training; with a "cause", it
    was stopped, and its snapshot is all there is.

    Raises:
        InputError: something in the user's files, or work that would be lost.
    """
    data = load_tokens(workspace.existing_tokens())
    lent = _tokenizer_of(data, workspace).lent()
    plan = _plan(config, workspace, which, data)
    stage = Stage(plan, workspace, target)
    if not restart and (facts := stage.finished()) is not None:
        workspace.keep_config(config)
        return facts
    architecture = getattr(config.models, which)
    seed = derive_seed(config.seed, f"pretrain-{which}")
    backbone = _untrained(architecture, data.spec, which, seed)
    backbone.attach(lent)
    if (start := getattr(config.pretrain, which).start) is not None:
        backbone.begin_as(_start(start, workspace, which, architecture).load(torch.float32))
    stage.begin(resume=resume, restart=restart)
    course = stage.run(_training(config, which, backbone, data, seed))
    workspace.keep_config(config)
    facts = course.facts() | {"parameters": sum(p.numel() for p in backbone.parameters())}
    if "cause" in facts:
        return facts
    extra = {"pretrain": facts, "made_from": plan.made_from, "config_digest": digest(config)}
    save_backbone(plan.path, backbone, architecture, **extra)
    stage.clear()
    return facts


def pretrain_silently(config: RunConfig, workspace: Workspace, which: Model) -> dict[str, Any]:
    """As `pretrain_model`, anew, where another process shows how far it is (`courses`)."""
    return pretrain_model(config, workspace, which, Console(quiet=True), restart=True)


def courses(config: RunConfig, workspace: Workspace) -> list[Course]:
    """Where such trainings say how far they are."""
    return [
        Course(
            f"pretrain {which}",
            getattr(config.pretrain, which).steps,
            workspace.root / f"pretrain_{which}.jsonl",
        )
        for which in trained_models(config)
    ]


def _start(
    path: Path, workspace: Workspace, which: Model, architecture: BackboneConfig
) -> ModelFile:
    """The weights to begin from: of the first of the model's `origins` that the file is of.

    Raises:
        InputError: there is no such file, or it is of none of them, in the words for the last.
    """
    spec, role = read_header(workspace.existing_tokens()).spec, f"models.{which}"
    found = [
        ModelFile(path, role, origin, spec, workspace.tokenizer)
        for origin in architecture.origins()
    ]
    for file in found[:-1]:
        try:
            file.check()
        except InputError:
            continue
        return file
    found[-1].check()
    return found[-1]


def _training(
    config: RunConfig, which: Model, backbone: Backbone, data: TokenDataset, seed: int
) -> Pretraining:
    settings: PretrainConfig = getattr(config.pretrain, which)
    return Pretraining(
        backbone,
        data,
        settings,
        seed=seed,
        device=settings.device,
        section=f"pretrain.{which}",
        conditions=config.conditions.of(which, data.spec.num_classes),
    )


def _untrained(
    architecture: BackboneConfig, spec: SequenceSpec, which: Model, seed: int
) -> Backbone:
    """A fresh model, if it can be trained here; activations, which come on top, are not counted."""
    require_memory(
        TRAINED_COPIES * module_bytes(lambda: architecture.build(spec)),
        f"pretraining models.{which}",
        f"lower the width or depth of models.{which}, or tokenizer.vocab_size",
    )
    return build_seeded(architecture, spec, seed)


def _tokenizer_of(data: TokenDataset, workspace: Workspace) -> Tokenizer:
    tokenizer = load_tokenizer(workspace.existing_tokenizer())
    if state_digest(tokenizer) != data.tokenizer_digest:
        raise InputError(
            f"{workspace.train_tokens}: tokens of another tokenizer than {workspace.tokenizer}; "
            "make them again with `varkd tokenize`"
        )
    return tokenizer


def _plan(config: RunConfig, workspace: Workspace, which: Model, data: TokenDataset) -> Plan:
    settings: PretrainConfig = getattr(config.pretrain, which)
    section = config.teacher if which == "teacher" else config.learner
    made_from = {
        "seed": config.seed,
        "tokens": data.digest(),
        "models": {which: getattr(config.models, which).model_dump(mode="json")},
        **config.made_from_conditions,
        "pretrain": {which: settings.model_dump(mode="json", exclude=HARMLESS)},
    }
    if settings.start is not None:
        file = _start(settings.start, workspace, which, getattr(config.models, which))
        made_from["start"] = file.digest()
    return Plan(
        name=which,
        path=workspace.teacher if which == "teacher" else workspace.student_before,
        made_from=made_from,
        steps=settings.steps,
        checkpoint_every=settings.checkpoint_every,
        is_distilled_from=section.weights is None,
    )
