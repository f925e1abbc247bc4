"""What a run leaves for people: report.json, report.md and three pictures."""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch

from common.config.schema import digest
from deploy.config import RunConfig
from deploy.console.versions import versions
from deploy.load import Load
from deploy.report.quality import Quality
from deploy.report.rewards import reward_facts

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
    "reverse_kl",
    "draft_acceptance",
)


def summarise(
    config: RunConfig, facts: dict[str, Any], rows: list[dict[str, Any]], quality: Quality
) -> dict[str, Any]:
    """The report as data; every number is read from the run's own records."""
    return {
        **_measured(quality),
        "wall_seconds": round(facts.get("wall_seconds", 0.0), 2),
        "steps": facts.get("steps", 0),
        "ended": facts.get("cause") or "all steps done",
        "images_per_second": _pace(rows),
        "weights_published": facts.get("published", 0),
        "staleness": _staleness(config, facts, rows),
        "rollout_workers": config.rollout.workers,
        "actors": _actors(rows),
        "slow_workers": facts.get("slow_workers", {}),
        "worker_deaths": facts.get("deaths", {}),
        "replaced": facts.get("replaced", {}),
        "learner_restarts": facts.get("restarts", []),
        "leases_reissued": facts.get("ledger/reissued", 0),
        "rewards": reward_facts(rows, config.objective.rewarded()),
        "survival_rate": _survival_rate(rows),
        "seconds": _stage_seconds(rows),
        "bottleneck": bottleneck(facts),
        "shares": by_context(rows).get("share", {}),
        "final": final_numbers(rows),
        "objective": config.objective.model_dump(mode="json"),
        "perceptual": facts.get("perceptual") or None,
        "contexts": config.contexts.shares(),
        "seed": config.seed,
        "one_process": facts.get("local", False),
        "versions": versions(),
        "machine": {"cpus": os.cpu_count(), "cuda": torch.cuda.is_available()},
        "config_digest": digest(config),
    }


def _measured(quality: Quality) -> dict[str, Any]:
    return {
        "fid": {name: found["fid"] for name, found in quality.metrics.items()},
        "metrics": quality.metrics,
        "likelihood": quality.likelihood,
        "milliseconds_per_image": quality.drawing_ms,
        "left_out": quality.left_out,
        "weights": quality.weights,
        "features": quality.features,
        "classes_shown": list(quality.classes.values()),
    }


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


def _staleness(
    config: RunConfig, facts: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, float]:
    lags = [row["lag_mean"] for row in rows if "lag_mean" in row]
    return {
        "mean": sum(lags) / len(lags) if lags else 0.0,
        "max": max((row.get("lag_max", 0.0) for row in rows), default=0.0),
        "dropped": facts.get("buffer/dropped", 0),
        "bound": config.learner.max_staleness,
    }


def _survival_rate(rows: list[dict[str, Any]]) -> float | None:
    """Over the steps that have one: the mean over the contexts that the student sampled."""
    steps = ([v for key, v in row.items() if key.startswith("survival/")] for row in rows)
    means = [sum(found) / len(found) for found in steps if found]
    return sum(means) / len(means) if means else None


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


def _stage_seconds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds per step by stage; rollout and teacher overlap with the learner."""
    stages = ("wait", "step", "rollout", "teacher")
    return {
        stage: sum(values) / len(values)
        for stage in stages
        if (values := [row[f"seconds/{stage}"] for row in rows if f"seconds/{stage}" in row])
    }


def _actors(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The fewest and the most of each role that were there."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for key, count in row.items():
            if key.startswith("actors/"):
                least, most = found.get(key, (count, count))
                found[key] = [min(least, count), max(most, count)]
    return {key.removeprefix("actors/"): range_ for key, range_ in found.items()}


def bottleneck(facts: Mapping[str, Any]) -> str | None:
    """The sentence about who held the others up, from distill.json; None where nobody knows."""
    busy = facts.get("busy")
    if not busy:
        return None
    scorers = {name: share for name, share in busy.items() if name not in ("learner", "rollout")}
    return Load(busy["learner"], scorers, busy["rollout"], facts.get("steps", 0)).sentence()


def plain(value: Any) -> Any:
    """The same data with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
