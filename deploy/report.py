"""What a run leaves for people: report.json, report.md, samples.png, curves.png."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from common.checkpoint import write_text
from common.config import digest
from common.errors import InputError
from common.tokens import token_header
from deploy.config import RunConfig, Workspace
from deploy.pictures import grid, save_curves, save_png, side_by_side
from deploy.quality import Quality, assess

PACKAGES = ("torch", "ray", "pyarrow", "torch-fidelity", "numpy", "pydantic", "scikit-learn")
PER_CLASS = 8
MOST_CLASSES = 20
TITLES = {
    "teacher": "teacher",
    "student_before": "student before",
    "student_after": "student after",
}


def write_report(
    config: RunConfig, workspace: Workspace, target: Console, *, wall_seconds: float | None = None
) -> dict[str, Any]:
    """Evaluate every model of the run and write the report's four files."""
    facts = _read_facts(workspace.root / "distill.json")
    rows = read_rows(workspace.root / "metrics.jsonl")
    quality = assess(config, workspace, target)
    report = summarise(config, facts, rows, quality)
    if wall_seconds is not None:
        report["wall_seconds"] = round(wall_seconds, 2)
    _, classes, _ = token_header(workspace.existing_tokens())
    save_png(workspace.root / "samples.png", _sample_sheet(quality, len(classes)))
    save_curves(workspace.root / "curves.png", rows, report["fid"])
    write_text(workspace.root / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(workspace.root / "report.md", to_markdown(report, classes))
    return report


def summarise(
    config: RunConfig, facts: dict[str, Any], rows: list[dict[str, Any]], quality: Quality
) -> dict[str, Any]:
    """The report as data; every number is read from the run's own records."""
    lags = [row["lag_mean"] for row in rows if "lag_mean" in row]
    survival = [row["survival/student"] for row in rows if "survival/student" in row]
    span = rows[-1]["time"] - rows[0]["time"] if len(rows) > 1 else 0.0
    images = rows[-1]["images_total"] - rows[0]["images_total"] if rows else 0
    return {
        "fid": {name: found["fid"] for name, found in quality.metrics.items()},
        "metrics": quality.metrics,
        "features": quality.features,
        "wall_seconds": round(facts.get("wall_seconds", 0.0), 2),
        "steps": facts.get("steps", 0),
        "ended": facts.get("cause") or "all steps done",
        "images_per_second": round(images / span, 1) if span else 0.0,
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
        "objective": config.objective.model_dump(mode="json"),
        "contexts": config.contexts.shares(),
        "seed": config.seed,
        "one_process": facts.get("local", False),
        "versions": versions(),
        "machine": {"cpus": os.cpu_count(), "cuda": torch.cuda.is_available()},
        "config_digest": digest(config),
    }


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "varkd": _own_version(), **found}


def _own_version() -> str:
    try:
        return importlib.metadata.version("varkd")
    except importlib.metadata.PackageNotFoundError:  # run from a working_dir, not installed
        return "not installed"


def to_markdown(report: dict[str, Any], classes: tuple[str, ...]) -> str:
    """The same numbers as a page."""
    names = list(next(iter(report["metrics"].values())))
    lines = [
        "# Distillation report",
        "",
        "| model | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for model, found in report["metrics"].items():
        lines.append(f"| {model} | " + " | ".join(f"{found[n]:.3f}" for n in names) + " |")
    features, staleness = report["features"], report["staleness"]
    survival = report["survival_rate"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report["contexts"].items())
    lines += [
        "",
        f"{features['samples']} samples per model against {features['reference']}. "
        f"{features['note']}",
        "",
        "![samples](samples.png)",
        "",
        f"One row per class: {', '.join(classes[:MOST_CLASSES])}.",
        "",
        "![curves](curves.png)",
        "",
        "| run | |",
        "|---|---|",
        f"| objective | {report['objective']['kind']} |",
        f"| contexts | {shares} |",
        f"| steps | {report['steps']} ({report['ended']}) |",
        f"| images per second | {report['images_per_second']} |",
        f"| wall clock | {report['wall_seconds']} s |",
        f"| weight versions published | {report['weights_published']} |",
        f"| staleness | mean {staleness['mean']:.2f}, max {staleness['max']:.0f}, bound "
        f"{staleness['bound']} steps; {staleness['dropped']} images dropped |",
        f"| survival of the gate | {'-' if survival is None else f'{survival:.1%}'} |",
        f"| rollout workers | {report['rollout_workers']}, {len(report['worker_deaths'])} died |",
        f"| seed, config | {report['seed']}, {report['config_digest']} |",
    ]
    return "\n".join(lines) + "\n"


def _stage_seconds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds per step by stage; rollout and teacher overlap with the learner."""
    stages = ("wait", "step", "rollout", "teacher")
    return {
        stage: sum(row[f"seconds/{stage}"] for row in rows) / len(rows) for stage in stages if rows
    }


def _sample_sheet(quality: Quality, num_classes: int) -> Any:
    shown = min(num_classes, MOST_CLASSES)
    order = [
        index
        for label in range(shown)
        for index in (quality.labels == label).nonzero().flatten()[:PER_CLASS].tolist()
    ]
    columns = max(1, len(order) // shown)
    panels = {
        title: grid(quality.samples[name][order], columns)
        for name, title in TITLES.items()
        if name in quality.samples
    }
    return side_by_side(panels)


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make it with `varkd distill`") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Metric rows by step, in order; none where there is no file."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    # A learner that went on from a snapshot repeats the steps after it: the last word counts.
    return list({row["step"]: row for row in rows}.values())
