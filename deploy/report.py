"""What a run leaves for people: report.json, report.md and three pictures."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from common.checkpoint import write_text
from common.config import digest
from common.errors import InputError
from common.metrics import PROFILE
from common.tokens import token_header
from deploy.config import RunConfig, Workspace
from deploy.curves import save_curves, save_diagnostics
from deploy.pictures import grid, save_png, side_by_side
from deploy.quality import Quality, assess
from deploy.versions import installed, python

PACKAGES = ("torch", "ray", "pyarrow", "torch-fidelity", "numpy", "pydantic", "scikit-learn")
PER_CLASS = 8
MOST_CLASSES = 20
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
READING = (
    "**Confidence by position**: where the teacher's confidence on rollouts (sampled slots alone) "
    "lies below that on data, the student's context is one that the teacher does not know.",
    "**Survival of the gate**: which share of the slots at that distance from the start of the "
    "rollout still has a loss; a steep fall means that the gate is a short horizon.",
    "**Divergence between and within clusters**: together the divergence over all codes; what is "
    "within clusters is not trained by a relaxed loss and should not grow.",
    "**Entropy**: a student far below its teacher has lost alternatives. The student's is of open "
    "slots alone: what the gate closed never reaches its head.",
    "**Seconds by stage**: sampling and scoring run beside the learner, which is the bottleneck "
    "while it hardly waits.",
    "**Divergence by position**: what is left to learn, slot by slot, of open slots.",
)
TITLES = {
    "teacher": "teacher",
    "student_before": "student before",
    "student_after": "student after",
}


def write_report(
    config: RunConfig, workspace: Workspace, target: Console, *, wall_seconds: float | None = None
) -> dict[str, Any]:
    """Evaluate every model of the run and write the report's five files."""
    facts = _read_facts(workspace.root / "distill.json")
    rows = read_rows(workspace.root / "metrics.jsonl")
    profiles = [row[PROFILE] for row in read_rows(workspace.root / "profiles.jsonl")]
    quality = assess(config, workspace, target)
    report = summarise(config, facts, rows, quality)
    if wall_seconds is not None:
        report["wall_seconds"] = round(wall_seconds, 2)
    _, classes, _ = token_header(workspace.existing_tokens())
    save_png(workspace.root / "samples.png", _sample_sheet(quality, len(classes)))
    save_curves(workspace.root / "curves.png", rows, report["fid"])
    tau = _threshold(config, rows)
    save_diagnostics(workspace.root / "diagnostics.png", rows, profiles, tau=tau)
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
        *_curves_page(report),
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


def _curves_page(report: dict[str, Any]) -> list[str]:
    final = report["final"]
    lines = ["![curves](curves.png)", "", "![diagnostics](diagnostics.png)", ""]
    lines += [*(f"- {line}" for line in READING), ""]
    if not final:
        return lines
    names = [name for name in FINAL if name in final]
    titles = " | ".join(name.replace("_", " ") for name in names)
    lines += [f"| steps {final['steps']['first']}-{final['steps']['last']} | share | {titles} |"]
    lines += ["|---" * (len(names) + 2) + "|"]
    for context, share in report["shares"].items():
        values = [final[name].get(context) for name in names]
        cells = " | ".join("-" if value is None else f"{value:.4g}" for value in values)
        lines.append(f"| {context} | {share:.1%} | {cells} |")
    return [*lines, "", "Share: of all rows of the run. Entropies and divergences in nats.", ""]


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
