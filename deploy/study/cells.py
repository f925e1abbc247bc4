"""One cell of a study: a method trained with one seed from the shared start, then measured.

A cell is one process on purpose: the same roles as everywhere, in the order of `--local`, so that
methods differ in nothing but their config. What a cell found is one file, written last; a cell that
has it is done, and one that was interrupted goes on from its snapshot.
"""

import json
import os
import platform
import shutil
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from common.device import place
from common.errors import InputError
from common.exchange.metric_files import read_rows
from common.files.atomic import write_text
from common.files.paths import read_json
from deploy.console.stopping import Stopped
from deploy.console.versions import commit
from deploy.layout import check_layout
from deploy.run_folder.borrowing import link
from deploy.run_folder.workspace import Workspace
from deploy.stages.distill import distill
from deploy.stages.second_stage import second_stage
from deploy.study.analysis.results import REFERENCES, CellFacts
from deploy.study.jobs import Job, read_cell
from deploy.study.measuring import measure_all

SHARED = ("tokenizer.safetensors", "tokens", "teacher.safetensors", "student_before.safetensors")
"""Files of the start that every cell reads in place."""


def run_cell(job: Job) -> None:
    """Train and measure; nothing is left to do where the cell has its result.

    Raises:
        InputError: the method's config and the start's files do not go together.
        RunFailed: the learner ended early.
    """
    check_layout()
    torch.set_num_threads(job.threads)
    if read_cell(job) is not None:
        return
    workspace = _linked(job)
    trained = job.method not in REFERENCES
    if trained:
        begun = _is_begun(job)
        write_text(job.begun, json.dumps(_asked(job)))
        _distill(job, workspace, resume=begun)
    rows = read_rows(workspace.root / "metrics.jsonl") if trained else []
    measurements = measure_all(job, workspace, _clock(rows))
    stored = {
        "request": job.request,
        "made_from": job.made_from,
        "commit": commit(),
        "facts": asdict(_facts(job, rows)),
        "measurements": [asdict(row) for row in measurements],
    }
    write_text(job.result, json.dumps(stored, indent=1))
    for folder in (workspace.snapshots, workspace.milestones):
        shutil.rmtree(folder, ignore_errors=True)


def probe(job: Job) -> float:
    """Seconds per step of a method, from a short run that is thrown away."""
    check_layout()
    torch.set_num_threads(job.threads)
    workspace = _linked(job)
    try:
        _distill(job, workspace, resume=False)
        rows = read_rows(workspace.root / "metrics.jsonl")[1:]  # the first one warms up
        return sum(_step_seconds(row) for row in rows) / len(rows)
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)


def _distill(job: Job, workspace: Workspace, *, resume: bool) -> None:
    """To the end, from the snapshot or anew.

    Raises:
        Stopped: somebody stopped it; a cell's snapshot stays, and the same study goes on from it.
    """
    quiet, config = Console(quiet=True), job.config
    if job.after is not None:
        config = second_stage(config, workspace, Workspace(job.after.folder))
    facts = distill(config, workspace, quiet, local=True, resume=resume, restart=not resume)
    if facts["stopped"]:
        raise Stopped(facts["stopped"])


def _is_begun(job: Job) -> bool:
    """Whether the folder's run is this very job's, and can go on; else it is thrown away."""
    try:
        is_ours = read_json(job.begun, "the request of a cell") == _asked(job)
    except (FileNotFoundError, InputError):
        return False
    return is_ours and Workspace(job.folder).snapshots.exists()


def _asked(job: Job) -> dict[str, Any]:
    """As JSON reads it back."""
    return json.loads(json.dumps({"request": job.request, "made_from": job.made_from}))


def _linked(job: Job) -> Workspace:
    """The cell's run folder, which reads the start's files in place."""
    job.folder.mkdir(parents=True, exist_ok=True)
    link(job.start, job.folder)
    return Workspace(job.folder)


def _step_seconds(row: dict[str, Any]) -> float:
    """Waiting for a batch (in one process: sampling and scoring it) and the update."""
    return row["seconds/wait"] + row["seconds/step"]


def _clock(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Training seconds at the end of every step; evaluation and files are not in them."""
    total, found = 0.0, {}
    for row in rows:
        total += _step_seconds(row)
        found[row["step"]] = total
    return found


def _facts(job: Job, rows: list[dict[str, Any]]) -> CellFacts:
    survival = [row["survival/student"] for row in rows if "survival/student" in row]
    seconds = sum(_step_seconds(row) for row in rows)
    device = place(job.config.learner.device)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return CellFacts(
        method=job.method,
        seed=job.seed,
        steps=len(rows),
        images=len(rows) * job.config.learner.global_batch_size,
        seconds=seconds,
        seconds_per_step=seconds / len(rows) if rows else 0.0,
        survival=sum(survival) / len(survival) if survival else None,
        device=f"{kind}, {os.cpu_count()} CPUs",
    )
