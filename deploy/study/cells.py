"""One cell of a study: a method trained with one seed from the shared start, then measured.

A cell is one process on purpose: the same roles as everywhere, in the order of `--local`, so that
methods differ in nothing but their config. What a cell found is one file, written last; a cell that
has it is done, and one that was interrupted goes on from its snapshot.

Shape letters: N images, C channels, H height, W width.
"""

import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from common.device import place
from common.errors import InputError
from common.exchange.metrics import read_rows
from common.files.atomic import write_text
from common.files.paths import read_json
from common.models.guidance import Guidance
from deploy.config import RunConfig
from deploy.console.stopping import Stopped
from deploy.console.versions import commit
from deploy.layout import check_layout
from deploy.report.grids import by_class, class_sheet, save_png, spread
from deploy.run_folder.borrowing import link
from deploy.run_folder.workspace import AnyModelFile, Workspace
from deploy.stages.distill import distill
from deploy.stages.draw import load_for_sampling
from deploy.stages.judge import Judge
from deploy.study.analysis.results import BASE, TEACHER, CellFacts, Measurement
from deploy.study.jobs import Job, read_cell
from rollout.sampler import SamplingConfig

SHARED = ("tokenizer.safetensors", "tokens", "teacher.safetensors", "student_before.safetensors")
"""Files of the start that every cell reads in place."""
SHOWN_PER_CLASS = 4
SHOWN_CLASSES = 10
SHOWN_PIXELS = 96


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
    trained = job.method not in (BASE, TEACHER)
    if trained:
        begun = _is_begun(job)
        write_text(job.begun, json.dumps(_asked(job)))
        _distill(job, workspace, resume=begun)
    rows = read_rows(workspace.root / "metrics.jsonl") if trained else []
    measurements = _measure_all(job, workspace, rows)
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
    quiet = Console(quiet=True)
    facts = distill(job.config, workspace, quiet, local=True, resume=resume, restart=not resume)
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


def _measure_all(job: Job, workspace: Workspace, rows: list[dict[str, Any]]) -> list[Measurement]:
    """Along the way at the fixed scale, at the end over the whole sweep."""
    judge = Judge(job.config, Workspace(job.start))
    judge.read(Console(quiet=True))
    if not rows:
        file = workspace.model(job.config, "teacher" if job.method == TEACHER else "student_before")
        ends, last = [(0, file)], 0
    else:
        last = job.config.learner.steps
        ends = [
            (step, _milestone(job, workspace, step))
            for step in range(1, last + 1)
            if step % job.config.learner.export_every == 0 or step == last
        ]
    seconds = _clock(rows)
    found = []
    for step, file in ends:
        scales = job.scales if step == last else (job.fixed,)
        models = load_for_sampling(file, Workspace(job.start), job.config.evaluate.device)
        for scale in scales:
            sampling = at_scale(job.config.evaluate.sampling, scale)
            pixel_NCHW = judge.draw(*models, sampling)
            metrics = judge.compare(pixel_NCHW)
            if step == last and scale == job.fixed:
                _show(job.folder, pixel_NCHW, judge)
            images = step * job.config.learner.global_batch_size
            row = Measurement(
                job.method, job.seed, step, images, seconds.get(step, 0.0), scale, **metrics
            )
            found.append(row)
    return found


def require_metrics(config: RunConfig, workspace: Workspace) -> None:
    """All of them: a study's tables have a column for each.

    Raises:
        InputError: there are too few images for one of them.
    """
    for name, reason in Judge(config, workspace).left_out.items():
        raise InputError(f"evaluate: {name} {reason}, and a study compares it; raise the number")


def at_scale(sampling: SamplingConfig, scale: float) -> SamplingConfig:
    """The same sampling at another guidance scale; 1 runs the conditional model alone."""
    given = sampling.guidance
    guidance = None
    if scale != 1:
        guidance = given.model_copy(update={"scale": scale}) if given else Guidance(scale=scale)
    return sampling.model_copy(update={"guidance": guidance})


def _milestone(job: Job, workspace: Workspace, step: int) -> AnyModelFile:
    return workspace.made_student(job.config, workspace.milestone(job.weights, step))


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


def _show(folder: Path, pixel_NCHW: Tensor, judge: Judge) -> None:
    """A few samples per class, one row each, for the page."""
    shown = [int(judge.class_K[row]) for row in spread(len(judge.class_K), SHOWN_CLASSES)]
    rows = by_class(pixel_NCHW, judge.label_N, shown, SHOWN_PER_CLASS)
    names = [judge.reference.classes[label] for label in shown]
    save_png(folder / "samples.png", class_sheet(names, {"": rows}, most_pixels=SHOWN_PIXELS))
