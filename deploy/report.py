"""What a run leaves for people: report.json, report.md and three pictures."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from rich.console import Console

from common.checkpoint import write_text
from common.config import digest
from deploy.boards import FOLDER as GRIDS
from deploy.boards import draw_grids, save_grids
from deploy.config import RunConfig, Workspace
from deploy.curves import save_curves, save_diagnostics
from deploy.pictures import class_sheet, save_png
from deploy.quality import REAL, Quality, assess
from deploy.records import read_numbers, read_run_facts, read_windows
from deploy.report_page import to_markdown
from deploy.versions import installed, python

PACKAGES = ("torch", "ray", "pyarrow", "torch-fidelity", "numpy", "pydantic", "scikit-learn")
MOST_PIXELS = 128
"""Side of an image on the sheet of samples."""
LEAST_STEPS = 20
FINAL = (
    "confidence",
    "teacher_entropy",
    "student_entropy",
    "survival",
    "open_length",
    "divergence",
    "between_clusters",
    "within_clusters",
)
TITLES = {
    REAL: "real",
    "teacher": "teacher",
    "student_before": "student before",
    "student_after": "student after",
}


def write_report(
    config: RunConfig, workspace: Workspace, target: Console, *, wall_seconds: float | None = None
) -> dict[str, Any]:
    """Evaluate every model of the run and write the report's five files."""
    facts = read_run_facts(workspace.root / "distill.json")
    rows = read_numbers(workspace.root / "metrics.jsonl")
    profiles = read_windows(workspace.root / "profiles.jsonl")
    quality = assess(config, workspace, target)
    report = summarise(config, facts, rows, quality)
    if wall_seconds is not None:
        report["wall_seconds"] = round(wall_seconds, 2)
    report = plain(report)
    save_png(workspace.root / "samples.png", _sample_sheet(quality))
    save_curves(workspace.root / "curves.png", rows, report["fid"])
    tau = _threshold(config, rows)
    save_diagnostics(workspace.root / "diagnostics.png", rows, profiles, tau=tau)
    text = json.dumps(report, indent=2, allow_nan=False)
    write_text(workspace.root / "report.json", text + "\n")
    write_text(workspace.root / "report.md", to_markdown(report))
    grids = draw_grids(config, workspace, quality.classes, report["steps"], target)
    save_grids(workspace.board / GRIDS, grids)
    return report


def summarise(
    config: RunConfig, facts: dict[str, Any], rows: list[dict[str, Any]], quality: Quality
) -> dict[str, Any]:
    """The report as data; every number is read from the run's own records."""
    lags = [row["lag_mean"] for row in rows if "lag_mean" in row]
    survival = [row["survival/student"] for row in rows if "survival/student" in row]
    return {
        "fid": {name: found["fid"] for name, found in quality.metrics.items()},
        "metrics": quality.metrics,
        "left_out": quality.left_out,
        "weights": quality.weights,
        "features": quality.features,
        "classes_shown": list(quality.classes.values()),
        "wall_seconds": round(facts.get("wall_seconds", 0.0), 2),
        "steps": facts.get("steps", 0),
        "ended": facts.get("cause") or "all steps done",
        "images_per_second": _pace(rows),
        "weights_published": facts.get("published", 0),
        "staleness": {
            "mean": sum(lags) / len(lags) if lags else 0.0,
            "max": max((row.get("lag_max", 0.0) for row in rows), default=0.0),
            "dropped": facts.get("buffer/dropped", 0),
            "bound": config.learner.max_lag,
        },
        "rollout_workers": config.rollout.workers,
        "worker_deaths": facts.get("deaths", {}),
        "leases_reissued": facts.get("ledger/reissued", 0),
        "survival_rate": sum(survival) / len(survival) if survival else None,
        "seconds": _stage_seconds(rows),
        "shares": by_context(rows).get("share", {}),
        "final": final_numbers(rows),
        "objective": config.objective.model_dump(mode="json"),
        "contexts": config.contexts.shares(),
        "seed": config.seed,
        "one_process": facts.get("local", False),
        "versions": versions(),
        "machine": {"cpus": os.cpu_count(), "cuda": torch.cuda.is_available()},
        "config_digest": digest(config),
    }


def versions() -> dict[str, str]:
    found = {name: installed(name) for name in PACKAGES}
    return {"python": python(), "varkd": installed("varkd"), **found}


def commit() -> str:
    """Of the working tree that the code runs from, and whether it has uncommitted changes."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.SubprocessError):  # installed without its repository
        return "unknown"
    return found[0] + (" with uncommitted changes" if found[1] else "")


def by_context(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the rows that have it of every metric "name/context", as {name: {context: x}}."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for key, value in row.items():
            name, slash, context = key.partition("/")
            if slash:
                found.setdefault(name, {}).setdefault(context, []).append(value)
    return {
        name: {context: sum(values) / len(values) for context, values in contexts.items()}
        for name, contexts in found.items()
    }


def final_numbers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the run ended with: means over the last tenth of its steps, twenty at least."""
    last = rows[-max(LEAST_STEPS, len(rows) // 10) :]
    if not last:
        return {}
    means = by_context(last)
    steps = {"first": last[0]["step"], "last": last[-1]["step"]}
    return {"steps": steps} | {name: means[name] for name in (*FINAL, "seconds") if name in means}


def _pace(rows: list[dict[str, Any]]) -> float:
    """Images per second between the first and the last row."""
    known = [row for row in rows if "time" in row and "images_total" in row]
    span = known[-1]["time"] - known[0]["time"] if known else 0.0
    images = known[-1]["images_total"] - known[0]["images_total"] if known else 0
    return round(images / span, 1) if span > 0 else 0.0


def _threshold(config: RunConfig, rows: list[dict[str, Any]]) -> float | None:
    """The confidence below which the gate closes, where it is the teacher's over all codes."""
    gate = getattr(config.objective, "gate", None)
    if gate is None or not gate.closes or gate.mode == "speculative" or gate.entropy_space != "V":
        return None
    return next((row["gate/tau"] for row in reversed(rows) if "gate/tau" in row), gate.tau)


def _stage_seconds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds per step by stage; rollout and teacher overlap with the learner."""
    stages = ("wait", "step", "rollout", "teacher")
    return {
        stage: sum(values) / len(values)
        for stage in stages
        if (values := [row[f"seconds/{stage}"] for row in rows if f"seconds/{stage}" in row])
    }


def _sample_sheet(quality: Quality) -> Image:
    """Real images beside those of the models, a row per class."""
    panels = {
        title: quality.images[name] for name, title in TITLES.items() if name in quality.images
    }
    return class_sheet(list(quality.classes.values()), panels, most_pixels=MOST_PIXELS)


def plain(value: Any) -> Any:
    """The same data with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
