"""Measures teacher and student, before and after, on the same labels, seeds and features."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from common.artifacts.student_file import StudentFile
from common.errors import Diverged
from common.files.tensors import state_digest
from deploy.config import RunConfig
from deploy.console.progress import Bar
from deploy.report.grids import by_class, real_by_class, spread
from deploy.report.quality import REAL, Quality
from deploy.run_folder.workspace import AnyModelFile, ModelName, Workspace
from deploy.stages.classifier import classifier_facts
from deploy.stages.draw import load_for_sampling, ways
from deploy.stages.judge import Judge, Progress, compared_images
from rollout.evaluation.one_pass import Passes

NOTES = {
    "classifier": (
        "Features of a small classifier trained on this run's training images; comparable only "
        "between runs that share its digest, and not with Inception FIDs."
    ),
    "inception": (
        "Inception features by torch-fidelity; not comparable with classifier features, nor with "
        "FIDs of the ADM evaluator."
    ),
}


SHOWN = {"student": "student_after"}
"""Names in reports where they differ from the file's."""


SHOWN_CLASSES = 20
SHOWN_PER_CLASS = 8
REAL_PER_CLASS = 2


def assess(config: RunConfig, workspace: Workspace, target: Console) -> Quality:
    """Sample every model of the run with the same labels and noise, and compare with real images.

    Raises:
        InputError: there are too few images for a FID, more than fit into memory, or a model whose
            numbers are not finite.
    """
    settings, present = config.evaluate, _models(config, workspace)
    judge = Judge(config, workspace)
    facts = feature_facts(config, workspace, target)
    judge.read(target)
    reference = judge.reference
    shown = [int(judge.class_K[row]) for row in spread(len(judge.class_K), SHOWN_CLASSES)]
    sheet = {REAL: real_by_class(reference, shown, REAL_PER_CLASS)}
    metrics: dict[str, dict[str, float]] = {}
    weights: dict[str, dict[str, str]] = {}
    drawing_ms: dict[str, float] = {}
    for name, (file, passes) in present.items():
        total = judge.steps(first=not metrics)
        with Bar(target, f"evaluate {name}", total) as bar, _named(file):
            progress = Progress(bar, total)
            backbone, tokenizer = load_for_sampling(file, workspace, settings.device)
            began = time.perf_counter()
            pixel_NCHW = judge.draw(backbone, tokenizer, settings.sampling, progress, passes=passes)
            drawing_ms[name] = 1000 * (time.perf_counter() - began) / len(pixel_NCHW)
            metrics[name] = judge.compare(pixel_NCHW, progress)
            bar.show(total, {"FID": metrics[name]["fid"]})
        weights[name] = {"file": file.path.name, "digest": state_digest(backbone)}
        sheet[name] = by_class(pixel_NCHW, judge.label_N, shown, SHOWN_PER_CLASS)
    facts |= _how(judge)
    names = {label: reference.classes[label] for label in shown}
    return Quality(metrics, judge.left_out, facts, weights, names, sheet, drawing_ms)


def _how(judge: Judge) -> dict[str, Any]:
    """What was compared with what."""
    settings, reference = judge.settings, judge.reference
    return {
        "kind": settings.features,
        "note": NOTES[settings.features],
        "reference": f"{judge.reals} images of {reference.name}",
        "classes": f"{len(judge.label_N.unique())} of {len(reference.classes)}",
        "samples": settings.samples,
        "sampling": settings.sampling.model_dump(mode="json"),
        "steps": list(settings.steps),
        "inserted": settings.inserted,
        "batch_size": settings.batch_size,
    }


@contextmanager
def _named(file: AnyModelFile) -> Iterator[None]:
    """Say which model it is whose numbers are not finite."""
    try:
        yield
    except Diverged as error:
        raise Diverged(f"{file.path}: {error}") from None


def _models(config: RunConfig, workspace: Workspace) -> dict[str, tuple[AnyModelFile, Passes]]:
    """Files to compare, and in which passes; a run that was not distilled yet has at most the
    first two."""
    names: tuple[ModelName, ...] = ("teacher", "student_before")
    if workspace.student.exists():
        names = ("teacher", "student_before", "student", "student_ema")
    found: dict[str, tuple[AnyModelFile, Passes]] = {}
    drawn = ways(config, workspace, config.evaluate.device)
    for name in names:
        if workspace.has_model(config, name):
            file, shown = workspace.model(config, name), SHOWN.get(name, name)
            several = drawn if isinstance(file, StudentFile) else {"": drawn[""]}
            found |= {f"{shown}{way}": (file, passes) for way, passes in several.items()}
    return found


def feature_facts(config: RunConfig, workspace: Workspace, target: Console) -> dict[str, Any]:
    """Facts on the feature extractor; trains and stores the classifier unless it is there."""
    if config.evaluate.features == "inception":
        weights = config.evaluate.inception_weights
        return {"weights": str(weights) if weights else "torch-fidelity's download"}
    return own_classifier(config, workspace, target)


def own_classifier(config: RunConfig, workspace: Workspace, target: Console) -> dict[str, Any]:
    """Facts on the run's classifier of the images that are compared, trained if it is not there."""
    config = config.model_copy(update={"images": compared_images(config)})
    return classifier_facts(config, workspace, target)


def prepare_features(config: RunConfig, workspace: Workspace) -> None:
    """Have the extractor ready before anybody evaluates; says nothing."""
    feature_facts(config, workspace, Console(quiet=True))
