"""A study's cells, and how long each of them may train."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from common.errors import InputError
from common.files.atomic import write_text
from common.files.paths import read_json
from deploy.backend.actor_pool import Caller
from deploy.console.progress import Bar
from deploy.study.cells import probe
from deploy.study.config import Study
from deploy.study.jobs import Job
from deploy.study.start import read_mark


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
        self.speed.unlink(missing_ok=True)

    @property
    def speed(self) -> Path:
        return self.root / "speed.json"

    def probe(self, method: str) -> Path:
        return self.root / "probes" / method

    def cell(self, method: str, seed: int) -> Path:
        return self.root / "cells" / method / str(seed)


def budget(study: Study, folder: StudyFolder, call: Caller, target: Console) -> dict[str, int]:
    """Learner steps of every method: the same number, or as many as fit the same seconds."""
    given = study.config.budget
    if given.steps is not None:
        return {name: study.steps(name) for name in study.config.methods}
    probes = {
        name: replace(
            _job(study, folder, name, study.config.seeds[0], 1 + given.probe_steps),
            folder=folder.probe(name),  # thrown away after: never a cell's own
        )
        for name in study.config.methods
    }
    known = known_seconds(folder, probes)
    missing = {name: job for name, job in probes.items() if name not in known}
    with Bar(target, "probe", len(missing)) as bar:
        for done, (name, seconds) in enumerate(call(probe, missing), 1):
            if isinstance(seconds, Exception):
                raise seconds
            known[name] = seconds
            bar.show(done, {f"s/step {name}": seconds})
            requests = {name: probes[name].request for name in known}
            text = json.dumps({"seconds_per_step": known, "requests": requests})
            write_text(folder.budget, text)
    return steps_within(study, known)


def known_seconds(folder: StudyFolder, probes: dict[str, Job] | None = None) -> dict[str, float]:
    """Seconds per step of the methods that were timed already; with `probes`, as they are now.

    Raises:
        InputError: the file is damaged.
    """
    if not folder.budget.exists():
        return {}
    try:
        stored = read_json(folder.budget, "seconds of a study's methods")
        seconds = {name: float(value) for name, value in stored["seconds_per_step"].items()}
        requests = dict(stored.get("requests", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{folder.budget}: no seconds per step that a study wrote ({error}); remove it, and "
            "the methods are timed again"
        ) from None
    if probes is None:
        return seconds
    return {
        name: value
        for name, value in seconds.items()
        if name in probes and requests.get(name) == probes[name].request
    }


def steps_within(study: Study, seconds_per_step: dict[str, float]) -> dict[str, int]:
    seconds = study.config.budget.seconds
    assert seconds is not None
    return {name: max(1, round(seconds / seconds_per_step[name])) for name in study.config.methods}


def jobs(study: Study, folder: StudyFolder, steps: dict[str, int]) -> dict[tuple[str, int], Job]:
    """All cells, one seed after the other: load that drifts touches all methods alike."""
    return {
        (name, seed): _job(study, folder, name, seed, steps.get(name, 0))
        for seed in study.config.seeds
        for name in (*study.references, *study.config.methods)
    }


def _job(study: Study, folder: StudyFolder, method: str, seed: int, steps: int) -> Job:
    first = study.after.get(method)
    if method in study.references:
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
        contents=read_mark(folder.start).get("contents", {}),
        threads=max(1, int(study.config.cells.cpus)),
        after=_job(study, folder, first, seed, study.steps(first)) if first else None,
    )
