"""The feature extractor of small images: a classifier, trained once for the images it judges."""

from typing import Any

import torch
from rich.console import Console

from common.device import place
from common.errors import InputError
from common.files.made_from import difference
from common.files.tensors import read_metadata
from common.images.opening import ImageSource, open_images
from common.perceptual.classifier import Classifier, load_classifier, save_classifier
from common.randomness import derive_seed
from deploy.config import RunConfig
from deploy.console.progress import Bar, busy
from deploy.run_folder.workspace import Workspace
from rollout.evaluation.features import accuracy, train_classifier, training_precision

REPORTED = ("digest", "accuracy", "accuracy_on")


def classifier_facts(config: RunConfig, workspace: Workspace, target: Console) -> dict[str, Any]:
    """{"digest", "accuracy", "accuracy_on"} of the run's classifier; it is trained and stored
    unless the file holds the one of just these images, settings and seed.

    Raises:
        InputError: an image is bad, or the training diverged.
    """
    train = open_images(config.images, "train")
    split = "test" if config.images.has_test else "train"
    judged = open_images(config.images, "test") if split == "test" else train
    with busy(target, "features: reading the images"):
        made_from = {
            "images": train.digest(),
            "seed": config.seed,
            "evaluate": {"classifier": config.evaluate.classifier.made_from},
        }
        judged_on = judged.digest() if judged is not train else made_from["images"]
    facts = _stored(workspace, target)
    changed = difference(facts.get("made_from"), made_from)
    if changed is None and facts.get("judged_on") == judged_on:
        return {key: load_classifier(workspace.classifier)[1][key] for key in REPORTED}
    if changed is None:  # the same classifier, judged by other images
        model = load_classifier(workspace.classifier)[0]
    else:
        if facts:
            target.print(f"features: the classifier is trained anew, for {changed}")
        model = _train(config, train, target)
    with busy(target, "features: judging the classifier"):
        found = accuracy(model, judged.pixels(), judged.label_N)
    facts = {"made_from": made_from, "judged_on": judged_on, "accuracy": found}
    save_classifier(workspace.classifier, model, {**facts, "accuracy_on": split})
    return {key: load_classifier(workspace.classifier)[1][key] for key in REPORTED}


def _stored(workspace: Workspace, target: Console) -> dict[str, Any]:
    """What the file says of itself; nothing where there is none, or a damaged one."""
    if not workspace.classifier.exists():
        return {}
    try:
        facts = read_metadata(workspace.classifier).get("facts")
        load_classifier(workspace.classifier)
    except InputError as error:
        target.print(f"{error}; the classifier is trained anew")
        return {}
    return facts if isinstance(facts, dict) else {}


def _train(config: RunConfig, train: ImageSource, target: Console) -> Classifier:
    settings, device = config.evaluate.classifier, place(config.evaluate.device)
    dtype, why = training_precision(settings, device)
    target.print(f"features: training a classifier on {len(train)} images, in {dtype} ({why})")
    with busy(target, "features: reading the images"):
        pixel_NCHW = train.pixels()
    with Bar(target, "features", settings.steps) as bar:
        return train_classifier(
            settings,
            pixel_NCHW,
            train.label_N,
            num_classes=len(train.classes),
            generator=torch.Generator().manual_seed(derive_seed(config.seed, "features")),
            device=device,
            watch=lambda step, loss: bar.show(step, {"loss": loss}),
        )
