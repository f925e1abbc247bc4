"""What a run finds: its tokens' shape, how many images there are, and which files are missing."""

from dataclasses import replace
from pathlib import Path

from common.artifacts.model_file import ModelFile
from common.artifacts.student_file import StudentFile
from common.config.parts import parts
from common.data.tokens import count_images, read_header
from common.images.opening import open_images
from common.models.backbone import BackboneConfig
from common.perceptual.lpips import PACKAGE, LpipsConfig
from common.spec import SequenceSpec
from deploy.config import RunConfig
from deploy.run_folder.workspace import Workspace
from deploy.stages.generate import dataset_source


def sequence_spec(config: RunConfig, workspace: Workspace) -> SequenceSpec:
    """From the encoded tokens where they exist, else from the config, else from the images; 0
    classes where none of them knows."""
    if workspace.train_tokens.exists():
        return read_header(workspace.train_tokens).spec
    images = config.images
    classes = config.tokens.classes or images.classes
    if classes is None and images.is_there:
        classes = len(open_images(images, "train").classes)
    return replace(config.tokenizer.describe(images.size), num_classes=classes or 0)


def data_size(config: RunConfig, workspace: Workspace) -> tuple[int | None, int]:
    """(training images, variants of each); None where nothing tells."""
    path, tokens = workspace.train_tokens, config.tokens
    if not path.exists():
        return config.cluster.data_images or tokens.count(config.images), tokens.variants
    return count_images(path), read_header(path).variants


def generated_size(config: RunConfig, images: int | None) -> int:
    """Sequences in the teacher's own dataset; 0 where none is read, or nothing tells."""
    source = dataset_source(config)
    return 0 if source is None else source.sequences or images or 0


def check_files(config: RunConfig, workspace: Workspace, spec: SequenceSpec) -> None:
    """Models that are there must be what the config says; nothing but their headers is read."""
    for role, section, made in (
        ("teacher", config.teacher, workspace.teacher),
        ("student", config.learner, workspace.student_before),
    ):
        path, architecture = section.weights or made, getattr(config.models, role)
        if path.exists() and spec.num_classes:
            ema = section.weights_ema and path == section.weights
            rest = f"models.{role}", architecture, spec, workspace.tokenizer, ema
            if isinstance(architecture, BackboneConfig):
                ModelFile(path, *rest).check()
            elif path == section.weights:
                StudentFile(path, *rest).check()
    for _, net in parts(config, LpipsConfig):
        if net.is_installed and net.weights.exists():
            net.check()


def missing(config: RunConfig, workspace: Workspace) -> list[str]:
    """Files that the run would read and that are not there, by who makes them."""
    wanted: list[tuple[str, Path | None, str]] = [
        ("teacher.weights", config.teacher.weights, ""),
        ("learner.weights", config.learner.weights, ""),
    ]
    if config.teacher.weights is None:
        wanted.append(("the teacher", workspace.teacher, "pretrain --model teacher"))
    if workspace.has_model(config, "student_before") and config.learner.weights is None:
        wanted.append(("the student", workspace.student_before, "pretrain --model student"))
    if not workspace.train_tokens.exists():
        wanted.append(("the tokens", workspace.train_tokens, "tokenize"))
        wanted.append(("tokenizer.weights", getattr(config.tokenizer, "weights", None), ""))
        wanted += [("tokens.paths", path, "") for path in config.tokens.paths]
    if dataset_source(config) is not None:
        wanted.append(("the teacher's tokens", workspace.teacher_tokens, "generate"))
    if config.images.kind != "digits":
        wanted += [("images.train", path, "") for path in config.images.missing("train")]
        wanted += [("images.test", path, "") for path in config.images.missing("test")]
    wanted += [(f"{key}.weights", net.weights, "") for key, net in parts(config, LpipsConfig)]
    wanted.append(("rollout.weights_folder", config.rollout.weights_folder, ""))
    packages = [net for _, net in parts(config, LpipsConfig) if not net.is_installed]
    return [f"missing: the package {PACKAGE}, pip install {PACKAGE}" for _ in packages[:1]] + [
        f"missing: {name} {path}" + (f", which `varkd {command}` makes" if command else "")
        for name, path, command in wanted
        if path is not None and not path.exists()
    ]
