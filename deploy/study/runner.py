"""Runs a study: the shared start, then every cell as a Ray task on whatever the cluster has.

Whatever is finished stays: the start file by file, a cell as its cell.json.
"""

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from common.checkpoint import write_text
from common.config import digest
from common.errors import InputError
from common.tokenizer import TrainableTokenizerConfig
from deploy.cluster import cluster
from deploy.config import Workspace
from deploy.generating import generate
from deploy.progress import Bar
from deploy.quality import feature_facts
from deploy.stages import pretrain_model
from deploy.study.cells import SHARED, Found, Job, probe, read_cell, require_metrics, run_cell
from deploy.study.config import Study
from deploy.study.results import BASE, TEACHER
from deploy.study.tasks import Caller, call_here, call_on_ray
from deploy.tokenizing import tokenize
from deploy.trained_tokenizer import pretrain_tokenizer


@dataclass(frozen=True)
class StudyFolder:
    """Names of a study's files, all in one folder."""

    root: Path

    @property
    def start(self) -> Path:
        return self.root / "start"

    @property
    def budget(self) -> Path:
        return self.root / "budget.json"

    def clear(self) -> None:
        """Throw results away: what a study made, whatever else lies in the folder."""
        for made in (self.start, self.root / "cells", self.root / "probes"):
            shutil.rmtree(made, ignore_errors=True)
        self.budget.unlink(missing_ok=True)

    def probe(self, method: str) -> Path:
        return self.root / "probes" / method

    def cell(self, method: str, seed: int) -> Path:
        return self.root / "cells" / method / str(seed)


@dataclass
class Harvest:
    """What the cells of a study found, and why some found nothing."""

    found: dict[tuple[str, int], Found] = field(default_factory=dict)
    failed: dict[tuple[str, int], str] = field(default_factory=dict)


def prepare(study: Study, folder: StudyFolder, target: Console, *, local: bool) -> None:
    """Make what all cells share: tokenizer, tokens, teacher, base student, feature extractor.

    Raises:
        InputError: the folder holds the start of another study.
    """
    config, workspace = study.start, Workspace(folder.start)
    mark, ours = folder.start / "start.json", {"digest": digest(config)}
    is_begun = mark.exists() and any((folder.start / name).exists() for name in SHARED)
    if is_begun and json.loads(mark.read_text()) != ours:
        raise InputError(
            f"{folder.start}: made for another base or [set] than this study has now; choose "
            "another --out, or throw the old results away with --restart"
        )
    require_metrics(config, workspace)
    write_text(mark, json.dumps(ours))
    is_trained = isinstance(config.tokenizer, TrainableTokenizerConfig)
    if is_trained and not workspace.tokenizer.exists():
        pretrain_tokenizer(config, workspace, target)
    if not workspace.train_tokens.exists():
        tokenize(config, workspace, target, local=local)
    if config.teacher.weights is None and not workspace.teacher.exists():
        pretrain_model(config, workspace, "teacher", target)
    if config.learner.weights is None and not workspace.student_before.exists():
        pretrain_model(config, workspace, "student", target)
    if study.generating is not None:
        generate(study.generating, workspace, target, local=local)
    feature_facts(config, workspace, target)
    workspace.keep_config(config)


def budget(study: Study, folder: StudyFolder, call: Caller, target: Console) -> dict[str, int]:
    """Learner steps of every method: the same number, or as many as fit the same seconds."""
    given = study.config.budget
    if given.steps is not None:
        return dict.fromkeys(study.config.methods, given.steps)
    known = _known_seconds(folder)
    jobs = {
        name: replace(
            _job(study, folder, name, study.config.seeds[0], 1 + given.probe_steps),
            folder=folder.probe(name),  # thrown away after: never a cell's own
        )
        for name in study.config.methods
        if name not in known
    }
    with Bar(target, "probe", len(jobs)) as bar:
        for done, (name, seconds) in enumerate(call(probe, jobs), 1):
            if isinstance(seconds, Exception):
                raise seconds
            known[name] = seconds
            bar.show(done, {f"s/step {name}": seconds})
            write_text(folder.budget, json.dumps({"seconds_per_step": known}))
    return _steps(study, known)


def _known_seconds(folder: StudyFolder) -> dict[str, float]:
    """Seconds per step of the methods that were timed already."""
    if not folder.budget.exists():
        return {}
    return json.loads(folder.budget.read_text())["seconds_per_step"]


def _steps(study: Study, seconds_per_step: dict[str, float]) -> dict[str, int]:
    seconds = study.config.budget.seconds
    assert seconds is not None
    return {name: max(1, round(seconds / seconds_per_step[name])) for name in study.config.methods}


def jobs(study: Study, folder: StudyFolder, steps: dict[str, int]) -> dict[tuple[str, int], Job]:
    """All cells, one seed after the other: load that drifts touches all methods alike."""
    return {
        (name, seed): _job(study, folder, name, seed, steps.get(name, 0))
        for seed in study.config.seeds
        for name in (TEACHER, BASE, *study.config.methods)
    }


def _job(study: Study, folder: StudyFolder, method: str, seed: int, steps: int) -> Job:
    if method in (TEACHER, BASE):
        config = study.start.model_copy(update={"seed": seed})
    else:
        config = study.run(method, seed, steps)
    return Job(
        method=method,
        seed=seed,
        config=config,
        start=folder.start,
        folder=folder.cell(method, seed),
        scales=study.config.guidance.scales,
        fixed=study.config.guidance.fixed,
        weights=study.config.weights,
        threads=max(1, int(study.config.cells.cpus)),
    )


def run_cells(wanted: dict[tuple[str, int], Job], call: Caller, target: Console) -> Harvest:
    """Run what is not done yet. A cell that fails is named, and the others go on.

    Raises:
        InputError: the first cell whose config or files are the user's to mend.
    """
    harvest = Harvest()
    pending = {key: job for key, job in wanted.items() if read_cell(job) is None}
    if len(pending) < len(wanted):
        target.print(f"{len(wanted) - len(pending)} of {len(wanted)} cells were done earlier")
    with Bar(target, "cells", len(pending)) as bar:
        for done, ((method, seed), outcome) in enumerate(call(run_cell, pending), 1):
            if isinstance(outcome, InputError):
                raise InputError(f"methods.{method}, seed {seed}: {outcome}")
            if isinstance(outcome, Exception):
                harvest.failed[method, seed] = f"{type(outcome).__name__}: {outcome}"
                target.print(f"{method}, seed {seed} failed: {harvest.failed[method, seed]}")
                continue
            found = read_cell(wanted[method, seed])
            fids = [row.fid for row in found.measurements] if found else []
            bar.show(done, {f"FID {method}/{seed}": fids[-1]} if fids else {})
    harvest.found = gather(wanted)
    return harvest


def gather(wanted: dict[tuple[str, int], Job]) -> dict[tuple[str, int], Found]:
    """Everything that is done."""
    found = {key: read_cell(job) for key, job in wanted.items()}
    return {key: cell for key, cell in found.items() if cell is not None}


def run_study(
    study: Study, folder: StudyFolder, target: Console, *, local: bool, restart: bool
) -> tuple[dict[tuple[str, int], Job], Harvest]:
    """From the study's file to all cells and what they found.

    Raises:
        InputError: something in the study's files; finished cells stay.
    """
    if restart:
        folder.clear()
    prepare(study, folder, target, local=local)
    if local:
        return _run(study, folder, call_here, target)
    cells = study.config.cells
    cpus = max(os.cpu_count() or 1, -int(-cells.cpus // 1))
    with cluster(study.start, cpus, target):
        return _run(study, folder, call_on_ray(cells.cpus, cells.gpus, cells.tries), target)


def _run(
    study: Study, folder: StudyFolder, call: Caller, target: Console
) -> tuple[dict[tuple[str, int], Job], Harvest]:
    wanted = jobs(study, folder, budget(study, folder, call, target))
    return wanted, run_cells(wanted, call, target)


def collect(study: Study, folder: StudyFolder) -> tuple[dict[tuple[str, int], Job], Harvest]:
    """What is done so far; nothing is started.

    Raises:
        InputError: the study was not begun in this folder, or with other budgets.
    """
    given = study.config.budget
    steps = dict.fromkeys(study.config.methods, given.steps or 0)
    if given.seconds is not None:
        known = _known_seconds(folder)
        missing = [name for name in study.config.methods if name not in known]
        if missing:
            raise InputError(
                f"{folder.budget}: methods.{missing[0]} was not timed yet; run the study first"
            )
        steps = _steps(study, known)
    wanted = jobs(study, folder, steps)
    found = gather(wanted)
    if not found:
        raise InputError(f"{folder.root}: holds no finished cell of this study; run it first")
    return wanted, Harvest(found)


def describe(study: Study, folder: StudyFolder) -> str:
    """What a study would run, in a few lines."""
    config, given = study.config, study.config.budget
    amount = f"{given.steps} steps" if given.steps else f"{given.seconds:g} s, timed per method"
    each = config.curve - 1 + len(config.guidance.scales)
    return "\n".join(
        [
            f"{config.title}: {len(config.methods)} methods x {len(config.seeds)} seeds, "
            f"{len(config.methods) * len(config.seeds)} cells and "
            f"{2 * len(config.seeds)} references, in {folder.root}",
            f"every cell: {amount} of {study.start.learner.images_per_step} images, then {each} "
            f"evaluations of {study.start.evaluate.samples} samples",
            f"a cell takes {config.cells.cpus:g} CPUs and {config.cells.gpus:g} GPUs",
            *(f"  {name}: {study.run(name, 0, 1).objective.kind}" for name in config.methods),
        ]
    )
