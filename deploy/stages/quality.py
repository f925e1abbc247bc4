"""Measures teacher and student, before and after, on the same labels, seeds and features."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from torch import Tensor

from common.artifacts.student_file import StudentFile
from common.errors import Diverged
from common.files.tensors import state_digest
from common.models.backbone import Backbone
from deploy.backend.beside import Beside, Here, Job, wait_for
from deploy.config import RunConfig
from deploy.console.progress import Bar
from deploy.console.stopping import Stopped
from deploy.report.grids import by_class, real_by_class, spread
from deploy.report.quality import REAL, Quality
from deploy.run_folder.workspace import AnyModelFile, ModelName, Workspace
from deploy.stages.classifier import classifier_facts
from deploy.stages.draw import Drawn, load_for_sampling, ways
from deploy.stages.judge import Judge, Progress, compared_images
from deploy.stages.likelihood import LikelihoodProbe
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


@dataclass(frozen=True)
class Judged:
    """What there is to say of one model."""

    metrics: dict[str, float]
    weights: dict[str, str]
    likelihood: dict[str, float]
    drawing_ms: float
    sheet: list[Tensor]
    """Some images of each class that is shown."""


def assess(
    config: RunConfig,
    workspace: Workspace,
    target: Console,
    jobs: Beside | None = None,
    meanwhile: Callable[[dict[int, str]], object] = lambda classes: None,
) -> Quality:
    """Sample every model of the run with the same labels and noise, and compare with real images.

    With `jobs` other processes judge them, as many at a time as there are cores. `meanwhile` is
    called before their results are needed, with the names of the classes that are shown.

    Raises:
        InputError: there are too few images for a FID, more than fit into memory, or a model whose
            numbers are not finite.
    """
    present, judge = _models(config, workspace), Judge(config, workspace)
    facts = feature_facts(config, workspace, target)
    begun = {} if jobs is None else _begin(config, workspace, [*present], jobs)
    shown, reference = _shown(judge), judge.reference
    meanwhile(names := {label: reference.classes[label] for label in shown})
    if begun:
        found = _gathered(begun, target)
    else:
        judge.read(target)
        found = {name: _judged(config, workspace, judge, name, target) for name in present}
    found = {name: found[name] for name in present}
    sheet = {REAL: real_by_class(reference, shown, REAL_PER_CLASS)}
    return Quality(
        {name: one.metrics for name, one in found.items()},
        judge.left_out,
        facts | _how(judge),
        {name: one.weights for name, one in found.items()},
        {name: one.likelihood for name, one in found.items() if one.likelihood},
        names,
        sheet | {name: one.sheet for name, one in found.items()},
        {name: one.drawing_ms for name, one in found.items()},
    )


def _shown(judge: Judge) -> list[int]:
    """Labels of the classes that the sheet has."""
    return [int(judge.class_K[row]) for row in spread(len(judge.class_K), SHOWN_CLASSES)]


def _judged(
    config: RunConfig, workspace: Workspace, judge: Judge, name: str, target: Console
) -> Judged:
    """One of `_models`; the real images are read."""
    settings, (file, passes) = config.evaluate, _models(config, workspace)[name]
    total = judge.steps()
    with Bar(target, f"evaluate {name}", total) as bar, _named(file):
        progress = Progress(bar, total)
        backbone, tokenizer = load_for_sampling(file, workspace, settings.device)
        began = time.perf_counter()
        role = "teacher" if name == "teacher" else "student"
        models, how = (backbone, tokenizer), settings.sampling
        pixel_NCHW = judge.draw(*models, how, progress, passes=passes, role=role)
        drawing_ms = 1000 * (time.perf_counter() - began) / len(pixel_NCHW)
        metrics = judge.compare(pixel_NCHW, progress)
        nats = likelihood(config, workspace, backbone, judge, is_teacher=name == "teacher")
        bar.show(total, {"FID": metrics["fid"]})
    weights = {"file": file.path.name, "digest": state_digest(backbone)}
    sheet = by_class(pixel_NCHW, judge.label_N, _shown(judge), SHOWN_PER_CLASS)
    return Judged(metrics, weights, nats, drawing_ms, sheet)


def likelihood(
    config: RunConfig, workspace: Workspace, model: Drawn, judge: Judge, *, is_teacher: bool
) -> dict[str, float]:
    """In nats per token; of a student that decodes in one pass, and of none where it is left out,
    there is nothing to say."""
    if not config.evaluate.likelihood_samples or not isinstance(model, Backbone):
        return {}
    probe = LikelihoodProbe(config, workspace, judge.class_K)
    return probe.of_teacher() if is_teacher else probe.of_student(model)


def _judge_silently(
    config: RunConfig, workspace: Workspace, names: Sequence[str]
) -> dict[str, Judged]:
    """In a process of its own."""
    quiet, judge = Console(quiet=True), Judge(config, workspace)
    judge.read(quiet)
    return {name: _judged(config, workspace, judge, name, quiet) for name in names}


def _begin(
    config: RunConfig, workspace: Workspace, names: Sequence[str], jobs: Beside
) -> dict[tuple[str, ...], Job | Here]:
    """A process for each core, in turns."""
    count = min(len(names), os.cpu_count() or 1)
    shares = [tuple(names[first::count]) for first in range(count)]
    return {
        share: jobs.begin(f"evaluate {', '.join(share)}", _judge_silently, config, workspace, share)
        for share in shares
    }


def _gathered(begun: Mapping[tuple[str, ...], Job | Here], target: Console) -> dict[str, Judged]:
    """Raises:
    Stopped: by Ctrl-C or SIGTERM.
    """
    found: dict[str, Judged] = {}
    with Bar(target, "evaluate", sum(map(len, begun))) as bar:
        bar.say(", ".join(name for share in begun for name in share))
        stopped = wait_for([*begun.values()])
        if stopped is not None:
            raise Stopped(stopped)
        for job in begun.values():
            found |= job.result()
            bar.show(len(found), {f"FID {name}": one.metrics["fid"] for name, one in found.items()})
    return found


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
