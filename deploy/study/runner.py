"""Runs a study: the shared start, then every cell in a Ray actor, on whatever the cluster has.

Whatever is finished stays: the start file by file, a cell as its cell.json.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from common.errors import InputError, RunFailed
from deploy.backend.actor_pool import ActorPool, Caller, call_here
from deploy.backend.session import cluster
from deploy.console.faults import summary
from deploy.console.progress import Bar, busy
from deploy.study.analysis.results import SLOTS, TEACHER, SpeedRow
from deploy.study.budget import StudyFolder, budget, jobs, known_seconds, steps_within
from deploy.study.cells import run_cell
from deploy.study.config import Study
from deploy.study.jobs import Found, Job, read_cell, why_again
from deploy.study.speed import SpeedJob, measure_speed, read_speed
from deploy.study.start import prepare


@dataclass
class Harvest:
    """What the cells of a study found, and why some found nothing."""

    found: dict[tuple[str, int], Found] = field(default_factory=dict)
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    speed: list[SpeedRow] = field(default_factory=list)
    """Milliseconds of an image, where the study asks for them."""


def run_cells(wanted: dict[tuple[str, int], Job], call: Caller, target: Console) -> Harvest:
    """Run what is not done yet. A cell that fails is named, and the others go on.

    Raises:
        InputError: the first cell whose config or files are the user's to mend.
    """
    harvest = Harvest()
    pending = {key: job for key, job in wanted.items() if read_cell(job) is None}
    for (method, seed), job in pending.items():
        if (reason := why_again(job)) is not None:
            target.print(f"{method}, seed {seed} is run again: {reason}")
    if len(pending) < len(wanted):
        target.print(f"{len(wanted) - len(pending)} of {len(wanted)} cells were done earlier")
    with Bar(target, "cells", len(pending)) as bar:
        ended = 0
        while ready := _ready(pending):
            for key, outcome in call(run_cell, ready):
                ended += 1
                bar.show(ended, _told(key, ready[key], outcome, harvest, target))
            pending = {key: job for key, job in pending.items() if key not in ready}
    for key, job in pending.items():
        assert job.after is not None
        harvest.failed[key] = f"what it comes after, {job.after.method}, has no result"
    harvest.found = gather(wanted)
    return harvest


def _ready(pending: dict[tuple[str, int], Job]) -> dict[tuple[str, int], Job]:
    """Cells that wait for no other one."""
    return {
        key: job
        for key, job in pending.items()
        if job.after is None or read_cell(job.after) is not None
    }


def _told(
    key: tuple[str, int], job: Job, outcome: Any, harvest: Harvest, target: Console
) -> dict[str, float]:
    """What the bar shows of a cell that ended; one that failed is noted, and said.

    Raises:
        InputError: its config or files are the user's to mend.
    """
    method, seed = key
    if isinstance(outcome, InputError):
        raise InputError(f"methods.{method}, seed {seed}: {outcome}")
    if isinstance(outcome, Exception):
        said = isinstance(outcome, RunFailed)
        harvest.failed[key] = str(outcome) if said else summary(outcome)
        target.print(f"{method}, seed {seed} failed: {harvest.failed[key]}")
        return {}
    found = read_cell(job)
    fids = [row.fid for row in found.measurements] if found else []
    return {f"FID {method}/{seed}": fids[-1]} if fids else {}


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
    prepare(study, folder.start, target, local=local)
    if local:
        return _run(study, folder, call_here, target)
    cells = study.config.cells
    cpus = max(os.cpu_count() or 1, -int(-cells.cpus // 1))
    with cluster(study.start, cpus, target):
        pool = ActorPool("cells", cells.cpus, cells.gpus, tries=cells.tries)
        return _run(study, folder, pool, target)


def _run(
    study: Study, folder: StudyFolder, call: Caller, target: Console
) -> tuple[dict[tuple[str, int], Job], Harvest]:
    wanted = jobs(study, folder, budget(study, folder, call, target))
    harvest = run_cells(wanted, call, target)
    timing = _speed_job(study, folder, wanted, harvest)
    if timing is not None:
        with busy(target, "speed: drawing everything side by side"):
            for _, outcome in call(measure_speed, {"speed": timing}):
                if isinstance(outcome, Exception):
                    raise outcome
        harvest.speed = read_speed(timing) or []
    return wanted, harvest


def _speed_job(
    study: Study, folder: StudyFolder, wanted: dict[tuple[str, int], Job], harvest: Harvest
) -> SpeedJob | None:
    """Of the first seed's cells that are done, if the study asks for it and the teacher is."""
    settings, seed = study.config.speed, study.config.seeds[0]
    cells = {
        name: job
        for (name, of), job in wanted.items()
        if of == seed and name != SLOTS and (name, of) in harvest.found
    }
    if settings is None or TEACHER not in cells:
        return None
    return SpeedJob(cells, settings, folder.speed)


def collect(study: Study, folder: StudyFolder) -> tuple[dict[tuple[str, int], Job], Harvest]:
    """What is done so far; nothing is started.

    Raises:
        InputError: the study was not begun in this folder, or with other budgets.
    """
    given = study.config.budget
    steps = {name: study.steps(name) for name in study.config.methods}
    if given.seconds is not None:
        known = known_seconds(folder)
        missing = [name for name in study.config.methods if name not in known]
        if missing:
            raise InputError(
                f"{folder.budget}: methods.{missing[0]} was not timed yet; run the study first"
            )
        steps = steps_within(study, known)
    wanted = jobs(study, folder, steps)
    found = gather(wanted)
    if not found:
        raise InputError(f"{folder.root}: holds no finished cell of this study; run it first")
    harvest = Harvest(found)
    timing = _speed_job(study, folder, wanted, harvest)
    harvest.speed = (read_speed(timing) if timing else None) or []
    return wanted, harvest


def describe(study: Study, folder: StudyFolder) -> str:
    """What a study would run, in a few lines."""
    config, given = study.config, study.config.budget
    amount = f"{given.steps} steps" if given.steps else f"{given.seconds:g} s, timed per method"
    amount += "".join(f", {name} {steps}" for name, steps in given.own.items())
    each = config.curve - 1 + len(config.guidance.scales)
    references = len(study.references) * len(config.seeds)
    return "\n".join(
        [
            f"{config.title}: {len(config.methods)} methods x {len(config.seeds)} seeds, "
            f"{len(config.methods) * len(config.seeds)} cells and "
            f"{references} references, in {folder.root}",
            f"every cell: {amount} of {study.start.learner.global_batch_size} images, then {each} "
            f"evaluations of {study.start.evaluate.samples} samples",
            f"a cell takes {config.cells.cpus:g} CPUs and {config.cells.gpus:g} GPUs",
            *(_line(study, name) for name in config.methods),
        ]
    )


def _line(study: Study, name: str) -> str:
    after, rows = study.after[name], study.rows[name][1:]
    said = f"  {name}: {study.run(name, 0, 1).objective.kind}"
    said += f", after {after}" if after else ""
    return said + (f", also as {', '.join(rows)}" if rows else "")
