"""Measures teacher and student, before and after, on the same labels, seeds and features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from common.device import place
from common.images import open_images
from common.ledger import derive_seed
from common.model_file import ModelFile
from deploy.config import RunConfig, Workspace
from deploy.progress import Bar
from deploy.stages import draw_images, load_for_sampling
from deploy.workspace import ModelName
from rollout.evaluate import balanced_labels, measure
from rollout.features import accuracy, load_classifier, save_classifier, train_classifier

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


@dataclass(frozen=True)
class Quality:
    """Metrics by model, how they were made, and the images for the grid."""

    metrics: dict[str, dict[str, float]]
    features: dict[str, Any]
    samples: dict[str, Tensor]
    labels: Tensor


def assess(config: RunConfig, workspace: Workspace, target: Console) -> Quality:
    """Sample every model of the run with the same labels and noise, and compare with real images.

    The evaluation seed is a stream of its own: no training sample is ever drawn from it.
    """
    settings = config.evaluate
    if settings.size is not None:  # everything below compares images of that side
        images = config.images.model_copy(update={"size": settings.size})
        config = config.model_copy(update={"images": images})
    features = feature_facts(config, workspace, target)
    reference = open_images(config.images, settings.reference)
    real_NCHW = reference.pixels(settings.reference_images or None)
    label_N = balanced_labels(settings.samples, len(reference.classes))
    present = _models(config, workspace)
    metrics: dict[str, dict[str, float]] = {}
    samples: dict[str, Tensor] = {}
    with Bar(target, "evaluate", len(present)) as bar:
        for done, (name, file) in enumerate(present.items(), 1):
            backbone, tokenizer = load_for_sampling(file, workspace, config.rollout.device)
            samples[name] = draw_images(
                backbone,
                tokenizer,
                label_N,
                sampling=settings.sampling,
                batch_size=settings.batch_size,
                seed=derive_seed(config.seed, "evaluate"),
                size=settings.size,
            )
            classifier = workspace.classifier if settings.features == "classifier" else None
            metrics[name] = measure(settings, samples[name], real_NCHW, classifier=classifier)
            bar.show(done, {f"FID {name}": metrics[name]["fid"]})
    features |= {
        "kind": settings.features,
        "note": NOTES[settings.features],
        "reference": f"{len(real_NCHW)} images of {reference.name}",
        "samples": settings.samples,
        "sampling": settings.sampling.model_dump(),
    }
    return Quality(metrics, features, samples, label_N)


def _models(config: RunConfig, workspace: Workspace) -> dict[str, ModelFile]:
    """Files to compare; a run that was not distilled yet has only the first two."""
    names: tuple[ModelName, ...] = ("teacher", "student_before")
    if workspace.student.exists():
        names = ("teacher", "student_before", "student", "student_ema")
    return {SHOWN.get(name, name): workspace.model(config, name) for name in names}


def feature_facts(config: RunConfig, workspace: Workspace, target: Console) -> dict[str, Any]:
    """Facts on the feature extractor; trains and stores the classifier unless it is there."""
    if config.evaluate.features == "inception":
        weights = config.evaluate.inception_weights
        return {"weights": str(weights) if weights else "torch-fidelity's download"}
    wanted = {
        "images": config.images.model_dump(mode="json"),
        "classifier": config.evaluate.classifier.model_dump(mode="json"),
        "seed": config.seed,
    }
    if workspace.classifier.exists():
        _, facts = load_classifier(workspace.classifier)
        if facts["made_from"] == wanted:
            return {key: facts[key] for key in ("digest", "accuracy", "accuracy_on")}
    return _train_features(config, workspace.classifier, wanted, target)


def _train_features(
    config: RunConfig, path: Path, made_from: dict[str, Any], target: Console
) -> dict[str, Any]:
    train = open_images(config.images, "train")
    target.print(f"features: training a classifier on {len(train)} images")
    model = train_classifier(
        config.evaluate.classifier,
        train.pixels(),
        train.label_N,
        num_classes=len(train.classes),
        generator=torch.Generator().manual_seed(derive_seed(config.seed, "features")),
        device=place(config.learner.device),
    )
    split = "test" if config.images.has_test else "train"
    judged = open_images(config.images, split)
    found = accuracy(model, judged.pixels(), judged.label_N)
    facts = {"made_from": made_from, "accuracy": found, "accuracy_on": split}
    save_classifier(path, model, facts)
    _, stored = load_classifier(path)
    return {key: stored[key] for key in ("digest", "accuracy", "accuracy_on")}
